"""Files that are either whole or not there."""

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mova_engine.errors import MovaError

# A file that is being written is touched all the time; one left alone for so long has lost its writer.
STALE_SECONDS = 600
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")


def require_file(path: str | Path) -> os.stat_result:
    """The status of a regular file. MovaError for what is missing, or is a folder, a pipe or a device: never waits."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise MovaError(f"{path}: no such file") from None
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise MovaError(f"{str(path)!r}: not a name that a file can have ({error})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise MovaError(f"{path}: not a file but {kind}")
    return status


def _temporary(path: Path) -> Path:
    """The hidden name, its writer's own, that a file has until it is whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}")


def clear_stale(folder: Path) -> None:
    """Remove what killed writers left in a folder and those within it: files under the names that `write_atomic` and
    `whole_file` give, which nobody has written to for STALE_SECONDS.
    """
    for place, _, names in os.walk(folder):
        for path in (Path(place, name) for name in names if _TEMPORARY.fullmatch(name)):
            with contextlib.suppress(OSError):  # another process clears it too, or it is not ours
                if time.time() - path.lstat().st_mtime > STALE_SECONDS:
                    path.unlink()


def write_atomic(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to `path`, making its folder: a reader, or a crash at any moment, sees the old file or the new one.

    sync=False does not wait for the disk (much faster for many small files): only a loss of power can then spoil the
    file. MovaError, with the system's reason (a full disk, no permission), leaves the old file and no partial one.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MovaError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A with-block that writes a large file under the name that it is given; afterwards `path` is that file. If the
    block fails, `path` stays as it was. MovaError, with the system's reason, if the file cannot be written.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise MovaError(f"cannot write {path}: {error.strerror or error}") from None


def set_aside(path: Path) -> Path:
    """Give what lies under a name that is needed another, free one beside it, and return that. Raises OSError."""
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    path.rename(kept)
    return kept
