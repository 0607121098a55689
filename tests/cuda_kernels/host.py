"""Building of CUDA sources for the host, against the headers in `tests/cuda_host` in the place of NVIDIA's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from source_tree import ROOT

HEADERS = ROOT / "tests" / "cuda_host"
# CUDA reads memory as other types than it was written as. Misaligned vectors, which a GPU refuses and a CPU does not
# mind, are reported on stderr. Fortified functions take a jump to another stack for an error.
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-fsanitize=alignment", "-U_FORTIFY_SOURCE")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
# `make sanitize` names more sanitizers.
SANITIZERS = "MOVA_SANITIZE"


def build(sources: list[Path], library: Path) -> Path:
    """Compile the sources into `library`; skips the test where no compiler can."""
    if sys.platform != "linux":
        pytest.skip("the host emulation of CUDA needs Linux's ucontext")
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: g++ is not on PATH, CXX can name another")
    more = [f"-fsanitize={os.environ[SANITIZERS]}"] if os.environ.get(SANITIZERS) else []
    command = [compiler, *FLAGS, *WARNINGS, *more, f"-I{HEADERS}", f"-I{ROOT / 'csrc' / 'cuda'}", "-x", "c++"]
    child = subprocess.run([*command, *map(str, sources), "-o", str(library)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr[-3000:]
    return library
