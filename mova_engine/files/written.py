"""What the engine has written into a folder: a record that tells its files from the user's.

    FOLDER/.mova_written.jsonl      {"name": "000.mp4", "by": "sample", "sha256": "..."}

A line for each file, before it is written. A file is a command's own as long as its content is one that this command
recorded for its name. Whatever else lies in the folder, or was changed since, is not replaced or removed by it.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

RECORD = ".mova_written.jsonl"
# In place of a digest, for files that grow and folders: the engine made them.
MADE = "made"


class Written:
    """The record of `folder`, which need not exist yet, for command `by`. Several threads may use it."""

    def __init__(self, folder: str | Path, by: str) -> None:
        self.folder, self.by = Path(folder), by
        self._lock = threading.Lock()
        self._known: dict[str, set[str]] = {}
        self._read()

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that the command recorded."""
        return tuple(self._known)

    def is_own(self, name: str) -> bool:
        """Whether what is there under `name` now is the command's own."""
        path, known = self.folder / name, self._known.get(name, set())
        if not known or path.is_symlink():
            return False
        if MADE in known:
            return True
        return path.is_file() and _digest(path) in known

    def others(self, names: Iterable[str]) -> list[str]:
        """Of the names that are about to be written: those under which something lies that is not its own."""
        return [name for name in names if os.path.lexists(self.folder / name) and not self.is_own(name)]

    def check(self, names: Iterable[str], way_out: str) -> None:
        """MovaError for the first of `others`; way_out: what to do, as "give another --out"."""
        others = self.others(names)
        if others:
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            raise MovaError(
                f"{self.folder / others[0]}{more} was not written by this command, or was changed since; it is not "
                f"replaced: {way_out}"
            )

    def write(self, name: str, data: bytes, way_out: str, *, sync: bool = True) -> Path:
        """Write a file whole, in the place of nothing or of one of its own. MovaError as `check`."""
        self.check([name], way_out)
        self.add(name, hashlib.sha256(data).hexdigest())
        write_atomic(self.folder / name, data, sync=sync)
        return self.folder / name

    def remove(self, name: str) -> None:
        """Remove a file if it is its own. Raises OSError."""
        if self.is_own(name):
            (self.folder / name).unlink()

    def add(self, name: str, digest: str = MADE) -> None:
        """Note what is about to be written under `name`. MovaError when that cannot be."""
        with self._lock:
            if digest in self._known.get(name, ()):
                return
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # One write: lines of several threads, and of a process that is killed, stay whole.
                line = json.dumps({"name": name, "by": self.by, "sha256": digest}) + "\n"
                with open(self.folder / RECORD, "ab", buffering=0) as file:
                    file.write(line.encode())
            except OSError as error:
                raise MovaError(f"cannot write {self.folder / RECORD}: {error.strerror or error}") from None
            self._known.setdefault(name, set()).add(digest)

    def _read(self) -> None:
        path = self.folder / RECORD
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, UnicodeDecodeError) as error:
            raise MovaError(f"{path}, the record of what the engine wrote, cannot be read: {error}") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                name, by, digest = row["name"], row["by"], row["sha256"]
                if by == self.by:
                    self._known.setdefault(name, set()).add(digest)
            except (ValueError, TypeError, KeyError):
                # A kill may leave half of the last line.
                if number < len(lines) or not '{"name": "'.startswith(line[:10]):
                    raise MovaError(f"{path}: line {number} is no record of a written file; move it away") from None


def _digest(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
