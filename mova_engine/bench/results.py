"""Result files: what was measured, where, with which versions, at which commit, when. Figures quoted anywhere come
from these.
"""

import datetime
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


def circumstances(backend: Backend) -> dict[str, Any]:
    """Device, versions, commit (with a mark for uncommitted changes), date, and how busy the machine was."""
    return {
        "device": backend.name,
        "device_name": backend.describe(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "mova_engine": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _commit() -> str | None:
    """The checkout's commit; None outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_result(path: Path, backend: Backend, kind: str, **facts: Any) -> None:
    """One result file: {"kind", "circumstances", ...facts}."""
    content = {"kind": kind, "circumstances": circumstances(backend), **facts}
    write_atomic(path, (json.dumps(content, indent=1) + "\n").encode())
