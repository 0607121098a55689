"""Folders that are whole or not there, and that never take the place of anything that the engine did not write."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from mova_engine.errors import MovaError

# Marks a folder that is being written or removed.
UNFINISHED = ".mova_unfinished"


@contextmanager
def replaced_folder(folder: str | Path, own: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends well it becomes `folder`, else nothing changes.

    own: whether a folder that is there may be replaced: only one that the engine can be shown to have written. Without
    it, and where it says no, there must be none, or an empty one. Raises MovaError otherwise, before the block, and
    when writing fails.
    """
    folder = Path(os.path.abspath(folder))
    check_replaceable(folder, own)
    fresh, old = unfinished(folder), replaced(folder)
    try:
        remove_unfinished(fresh)
        fresh.mkdir(parents=True)
        (fresh / UNFINISHED).touch()
        yield fresh
        for path in sorted(fresh.rglob("*")):
            flush(path)
        flush(fresh)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        if os.path.lexists(folder):
            # Again: it may have changed in the meantime.
            check_replaceable(folder, own)
            folder.rename(old)
        (fresh / UNFINISHED).unlink()
        try:
            fresh.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
        flush(folder.parent)
        if old.is_dir():
            remove_folder(old)
    except (OSError, SafetensorError) as error:
        _remove_own(fresh)
        raise write_error(folder, error) from error
    except BaseException:
        _remove_own(fresh)
        raise


def check_replaceable(folder: str | Path, own: Callable[[Path], bool] | None = None) -> None:
    """MovaError where `replaced_folder` would refuse, or where its folders beside are in the way."""
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and not folder.is_dir():
        raise MovaError(f"{folder} is a file, which is not replaced; give the name of a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (own is not None and own(folder)):
        raise MovaError(f"{folder} exists and holds files; it is not replaced: give another folder, or remove it")
    fresh = unfinished(folder)
    if os.path.lexists(fresh) and not (fresh / UNFINISHED).is_file():
        raise MovaError(f"{fresh}, where the folder is to be written first, holds other files: move them away")
    if folder.is_dir() and os.path.lexists(replaced(folder)):
        raise MovaError(f"{replaced(folder)}, where the folder to replace goes first, exists: move it away")


def remove_folder(folder: Path) -> None:
    """Remove a folder that the engine wrote, so that what a kill leaves of it can be told, by `UNFINISHED`, and goes
    with `remove_unfinished`. Raises OSError.
    """
    (folder / UNFINISHED).touch()
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != UNFINISHED:
            path.unlink()
    (folder / UNFINISHED).unlink()
    folder.rmdir()


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed save or removal left as `folder`; nothing else. Raises OSError."""
    if (folder / UNFINISHED).is_file():
        remove_folder(folder)


def _remove_own(fresh: Path) -> None:
    with suppress(OSError):
        remove_unfinished(fresh)


def unfinished(folder: Path) -> Path:
    """Where `replaced_folder` has what is to become `folder`; such a folder holds a file named `UNFINISHED`."""
    return _beside(folder, "new")


def replaced(folder: Path) -> Path:
    """Where `replaced_folder` has what was `folder`, until the new one is in its place."""
    return _beside(folder, "old")


def nearest_folder(path: str | Path) -> Path:
    """The nearest folder above a path that is there: on its disk the path will be."""
    return next(folder for folder in Path(path).absolute().parents if folder.is_dir())


def write_error(path: str | Path, error: Exception) -> MovaError:
    """One line for a failed write of `path`."""
    # safetensors reports the system's error as text only.
    number = re.search(r"os error (\d+)", str(error))
    code = getattr(error, "errno", None) or (int(number[1]) if number else None)
    reason = "no space left on the disk" if code == errno.ENOSPC else os.strerror(code) if code else str(error)
    kept = "; what was there before is untouched" if Path(path).exists() else ""
    return MovaError(f"cannot write {path}: {reason}{kept}")


def flush(path: Path) -> None:
    """Bring a file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f".{path.name}.{what}")
