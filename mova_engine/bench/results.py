"""Result files: what was measured, where, with which versions, at which commit, when. Figures quoted anywhere come
from these.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mova_engine import __version__
from mova_engine.backend import Backend
from mova_engine.data.files import write_atomic
from mova_engine.errors import MovaError
from mova_engine.writable import check_writable
from mova_kernels.cpu.native import isa, unavailable

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
    """The checkout's commit; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Files of results change while one measurement after the other writes its own.
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(
    path: Path,
    backend: Backend,
    kind: str,
    *,
    load_at_start: float | None = None,
    processes: int = 1,
    **facts: Any,
) -> None:
    """One result file: {"kind", "circumstances", ...facts, "sha256"}; for the rest see `circumstances`.

    MovaError as of `check_result`.
    """
    check_result(path)
    content = {"kind": kind, "circumstances": circumstances(backend, load_at_start, processes), **facts}
    # As it is read again: keys become text, tuples lists.
    write_atomic(path, _signed(json.loads(json.dumps(content))))


def check_result(path: Path) -> None:
    """Before anything is measured: MovaError where `path` cannot be written, or where something lies that is no result
    file as it was written, which is not replaced.
    """
    check_writable(path.parent, "--json")
    if os.path.lexists(path) and not _is_own(path):
        raise MovaError(
            f"{path} was not written by this command, or was changed since; it is not replaced: give another --json, "
            "or move it away"
        )


def _is_own(path: Path) -> bool:
    try:
        data = path.read_bytes()
        return data == _signed({name: value for name, value in json.loads(data).items() if name != "sha256"})
    except (OSError, ValueError, AttributeError):
        return False


def _signed(content: dict[str, Any]) -> bytes:
    """A file's text, with a checksum by which it is known again as written here and left as it was."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": digest}, indent=1) + "\n").encode()


def read_result(path: Path) -> dict[str, Any]:
    """A result file. MovaError where it is missing, damaged or something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MovaError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict) or not {"kind", "circumstances"} <= content.keys():
        raise MovaError(f"{path} is no result file of `python -m mova_engine.bench` (no 'kind' and 'circumstances')")
    return content
