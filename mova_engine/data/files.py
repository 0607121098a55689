"""Files that are either whole or not there."""

import os
import secrets
from pathlib import Path

from mova_engine.errors import MovaError


def write_atomic(path: str | Path, data: bytes, *, sync: bool = True) -> None:
    """Write `data` to `path`, making its folder: a reader, or a crash at any moment, sees the old file or the new one.

    sync=False does not wait for the disk (much faster for many small files): only a loss of power can then spoil the
    file. MovaError, with the system's reason (a full disk, no permission), leaves the old file and no partial one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
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
