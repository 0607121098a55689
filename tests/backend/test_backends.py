"""Devices found by name, refused with a reason, and their float32 switches."""

import importlib.util
import os
import platform
import subprocess
import sys
import types

import pytest
import torch

from mova_engine.backend import NAMES, default_backend, describe_backend, get_backend
from mova_engine.backend.health import Packages, Surroundings
from mova_engine.errors import MovaError


def test_an_unknown_name_suggests():
    with pytest.raises(MovaError, match="unknown device 'nup'. Did you mean 'npu'"):
        get_backend("nup")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu_says_what_to_do():
    with pytest.raises(MovaError, match=r"device 'cuda' cannot be used: .*--device cpu"):
        get_backend("cuda")


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_npu_without_torch_npu_says_what_to_install():
    with pytest.raises(MovaError, match=r"torch_npu is not installed; install torch_npu==\d+\.\d+"):
        get_backend("npu")


def test_a_torch_npu_that_does_not_import_is_a_reason(monkeypatch):
    backend = describe_backend("npu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: types.SimpleNamespace())

    def broken(name):
        raise OSError("libhccl.so: cannot open shared object file\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    reason = backend.unavailable()
    assert reason.startswith("torch_npu does not import (libhccl.so: cannot open shared object file)")
    assert "set_env.sh" in reason


def test_pytorch_told_to_use_what_the_cpu_lacks_is_a_reason(monkeypatch):
    """PyTorch does as it is told, and the process dies of an illegal instruction in the first softmax."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx512")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    for has, reason in ((True, None), (False, "ATEN_CPU_CAPABILITY=avx512: this CPU has no AVX512; unset it")):
        monkeypatch.setattr("torch.cpu._is_avx512_supported", lambda has=has: has)
        assert describe_backend("cpu").unavailable() == reason


def test_describing_needs_no_hardware():
    assert [describe_backend(name).name for name in NAMES] == list(NAMES)


def test_the_default_can_serve():
    assert default_backend().unavailable() is None


def test_full_precision_switches_off_and_restores(backend):
    switches = backend._precision_switches()
    before = [getattr(obj, attr) for _, obj, attr, _ in switches]
    with backend.full_precision() as found:
        assert len(found) == len(switches)
        assert not any(report.was_on for report in backend.precision_report())
    assert [getattr(obj, attr) for _, obj, attr, _ in switches] == before


def test_full_precision_restores_after_an_error(backend):
    before = backend.precision_report()
    with pytest.raises(ZeroDivisionError), backend.full_precision():
        raise ZeroDivisionError
    assert backend.precision_report() == before


@pytest.mark.parametrize(("wanted", "width", "threads"), [(None, 96, 1), (2, 96, 2), (None, 768, 3)])
def test_narrow_models_get_one_cpu_thread_unless_told(wanted, width, threads):
    torch.set_num_threads(3)  # the fixture of every test restores it
    get_backend("cpu").use_threads(wanted, width)
    assert torch.get_num_threads() == threads


def test_rng_state_round_trips(backend):
    state = backend.rng_state()
    a = torch.randn(5, device=backend.device())
    backend.set_rng_state(state)
    assert torch.equal(torch.randn(5, device=backend.device()), a)


def test_memory_is_counted_in_bytes(backend):
    block = torch.zeros(64 << 20, dtype=torch.uint8, device=backend.device())
    assert backend.peak_memory() >= block.numel()
    assert backend.memory_allocated() >= block.numel()


_FAULTS = """
import resource, torch
from mova_engine.backend import get_backend
get_backend("cpu")
for count in range(16):
    if count == 12:  # the heap has found its size, which takes up to eight blocks
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(9 << 20)  # 36 MB: above the 32 MB up to which glibc keeps a block of itself
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (4 * 36 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the memory allocator is not glibc's")
@pytest.mark.parametrize(
    ("chosen", "stays"),
    [
        ({}, True),
        pytest.param({"MALLOC_MMAP_THRESHOLD_": "131072"}, False, marks=pytest.mark.long),
        pytest.param({"MOVA_KEEP_MEMORY": "0"}, False, marks=pytest.mark.long),
    ],
)
def test_freed_memory_stays_with_the_process_unless_the_user_chose_otherwise(chosen, stays):
    environment = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "MOVA_" not in name}
    command = [sys.executable, "-c", _FAULTS]
    child = subprocess.run(command, env=environment | chosen, capture_output=True, text=True, check=True)
    # Either each block is mapped anew, or none is.
    assert (float(child.stdout) < 0.25) == stays


def test_a_broken_device_is_named_and_never_skipped_in_silence(monkeypatch, caplog):
    """Installed and broken is a fault; absent is none."""
    npu, cuda = describe_backend("npu"), describe_backend("cuda")
    monkeypatch.setattr("mova_engine.backend._warned", set())
    monkeypatch.setattr(type(cuda), "unavailable", lambda self: "no GPU")
    monkeypatch.setattr(type(npu), "unavailable", lambda self: "torch_npu does not import (x); source set_env.sh")
    for present in (False, True):
        monkeypatch.setattr(type(npu), "present", lambda self, around, present=present: present)
        monkeypatch.setattr(type(cuda), "present", lambda self, around: False)
        for _ in range(2):
            assert default_backend().name == "cpu"
        told = [record.getMessage() for record in caplog.records]
        assert len(told) == int(present), told
    assert told[0].startswith("device 'npu' is there and cannot be used: torch_npu does not import (x)")
    assert "Going on with 'cpu'" in told[0] and "--device cpu" in told[0]


def test_what_makes_a_device_present(tmp_path):
    def around(environ=None, files=(), packages=()):
        for place in (*(f"root/{file}" for file in files), *(f"site/{name}/__init__.py" for name in packages)):
            path = tmp_path / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        # The import system remembers what a folder held.
        importlib.invalidate_caches()
        return Surroundings(Packages([str(tmp_path / "site")]), environ or {}, root=tmp_path / "root")

    npu, cuda, cpu = (describe_backend(name) for name in ("npu", "cuda", "cpu"))
    assert cpu.present(around()) and not npu.present(around()) and not cuda.present(around())
    assert cuda.present(around(files=["dev/nvidia0"])) and not npu.present(around())
    assert not cuda.present(around({"CUDA_VISIBLE_DEVICES": ""}))
    assert npu.present(around(files=["dev/davinci3"]))
    assert not npu.present(around({"ASCEND_RT_VISIBLE_DEVICES": ""}))
    (tmp_path / "root/dev/davinci3").unlink()
    assert not npu.present(around(files=["dev/davinci_manager"]))
    assert npu.present(around(packages=["torch_npu"]))
