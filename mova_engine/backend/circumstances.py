"""Where and by what something was measured: device, versions, commit, date, how busy the machine was."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mova_engine import __version__
from mova_engine.backend.base import Backend
from mova_kernels.cpu.native import isa, unavailable

# Where a copy of the files without git's history says which commit they are: a variable, or a file beside the package.
_COMMIT, _COMMIT_FILE = "MOVA_COMMIT", "COMMIT"
# Environment variables that change how fast things run: threads, and the C library's allocator.
_TELLING = ("OMP_", "KMP_", "MKL_", "MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "PYTORCH_", "MOVA_KEEP_")


def circumstances(backend: Backend, load_at_start: float | None = None, processes: int = 1) -> dict[str, Any]:
    """Device, versions, commit (with a mark for uncommitted changes), date, and how busy the machine was.

    load_at_start: the load average before the measurement; beside the one after it, a noisy run can be told.
    processes: the most that measured at once, with so many threads each.
    """
    return {
        "device": backend.name,
        "device_name": backend.describe(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "native_kernels": _native(),
        "load_average_at_start": None if load_at_start is None else round(load_at_start, 2),
        "load_average": round(os.getloadavg()[0], 2),
        "mova_engine": __version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_TELLING)},
        "platform": platform.platform(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _native() -> str | None:
    """The instruction set of the C++ kernels in use; None where they are not built."""
    return isa() if unavailable() is None else None


def _commit() -> str | None:
    """The checkout's commit; in a copy without git's history what MOVA_COMMIT or the file COMMIT at its top says; None
    where neither does.
    """
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Files of results change while one measurement after the other writes its own.
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        file = here.parents[1] / _COMMIT_FILE
        stated = os.environ.get(_COMMIT) or (file.read_text(encoding="utf-8") if file.is_file() else "")
        return stated.strip() or None
