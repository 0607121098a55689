"""Whether a folder can be written to, found out by writing: before hours of work, not after them."""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from mova_engine.errors import MovaError

# What the names of the files begin with that `check_writable` writes; a process that is killed leaves one behind.
PROBE = ".mova_probe."
# How often a folder that vanishes is made anew.
_AGAIN = 20


def check_writable(folder: str | Path, option: str) -> float:
    """Write a small file into `folder`, which need not exist, and remove it, with all that was made for it.

    Returns the file's time of change by the file system's clock, in seconds. option: what the user gave the folder by,
    as "--out". Raises MovaError with the system's reason.
    """
    folder = Path(os.path.abspath(folder))
    for last in (False,) * _AGAIN + (True,):
        try:
            return _probed(folder, option)
        except OSError as error:
            # Another process that looks at the same new folder may have removed it in between.
            if last or not isinstance(error, FileNotFoundError):
                reason = error.strerror or error
                raise MovaError(f"{option} {folder} cannot be written to: {reason}; give another {option}") from None
    raise AssertionError("the last attempt returns or raises")


def _probed(folder: Path, option: str) -> float:
    missing = []
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            if not path.is_dir() and os.path.lexists(path):
                raise MovaError(f"{option} {folder}: {path} is a file, not a folder; give another {option}")
            break
        missing.append(path)
    probe = folder / f"{PROBE}{secrets.token_hex(6)}"
    made: list[Path] = []
    try:
        for path in reversed(missing):
            # What another process has made meanwhile is not this one's to remove.
            with suppress(FileExistsError):
                path.mkdir()
                made.append(path)
        with open(probe, "xb") as file:
            file.write(b"mova")
            file.flush()
            os.fsync(file.fileno())
        return probe.stat().st_mtime
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
            for path in reversed(made):
                path.rmdir()
