"""Whether a folder can be written to, found out by writing: before hours of work, not after them."""

import os
import secrets
from pathlib import Path

from mova_engine.errors import MovaError

# What the names of the files begin with that `check_writable` writes; a process that is killed leaves one behind.
PROBE = ".mova_probe."


def check_writable(folder: str | Path, option: str) -> float:
    """Write a small file into `folder`, or into the nearest folder above it that exists, and remove it.

    No folder is made: other processes that look at the same new folder at that time would take it for there. Returns
    the file's time of change by the file system's clock, in seconds. option: what the user gave the folder by, as
    "--out". Raises MovaError with the system's reason.
    """
    folder = Path(os.path.abspath(folder))
    try:
        there = _nearest(folder)
        if not there.is_dir():
            raise MovaError(f"{option} {folder}: {there} is a file, not a folder; give another {option}")
        probe = there / f"{PROBE}{secrets.token_hex(6)}"
        try:
            with open(probe, "xb") as file:
                file.write(b"mova")
                file.flush()
                os.fsync(file.fileno())
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise MovaError(f"{option} {folder} cannot be written to: {reason}; give another {option}") from None


def _nearest(folder: Path) -> Path:
    """`folder` or the first of its parents that exists. Raises OSError where a name is none that a folder can have."""
    for path in (folder, *folder.parents):
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        return path
    raise FileNotFoundError(f"{folder.anchor} is not there")
