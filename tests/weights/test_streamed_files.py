"""Safetensors files that are written tensor by tensor, and files larger than a process may map."""

import os
import resource
from pathlib import Path

import torch

from mova_engine.errors import MovaError
from mova_engine.files.streamed import write_header
from mova_engine.files.tensors import tensors_of_file


def test_a_file_beyond_the_address_space_is_one_line(tmp_path):
    path, size = tmp_path / "large.safetensors", 1 << 30
    with open(path, "wb") as file:
        # A hole: no byte of the tensor is on the disk.
        file.truncate(write_header(file, {"weight": (torch.uint8, torch.Size([size]))}))
    assert tensors_of_file(path)["weight"].shape == (size,)
    child = os.fork()
    if not child:
        status = 3
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + size // 4, used + size // 4))
            tensors_of_file(path)
        except MovaError as error:
            status = 0 if "ulimit" in str(error) and "\n" not in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
