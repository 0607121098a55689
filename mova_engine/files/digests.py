"""SHA-256 of files' contents. Those of large files are kept on disk, valid while size and time of change stay."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

# Files from this many bytes on have their digest kept on disk.
LARGE_FILE = 4 << 20
# Absolute path, size, time of change in ns.
_Identity = tuple[str, int, int]


class Digests:
    """Digests, in memory and in `folder`. write: stores what can be had again, in a file."""

    def __init__(self, folder: Path, write: Callable[[Path, bytes], None]) -> None:
        self.folder, self.write = folder, write
        self._known: dict[_Identity, str] = {}

    def of(self, path: Path) -> str:
        """A file's digest. Large files are read again only when size or time of change are other ones.

        Raises MovaError, naming the file, for what cannot be read.
        """
        try:
            status = require_file(path)
            identity = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
            if identity not in self._known:
                large = status.st_size >= LARGE_FILE
                known = self._stored(identity) if large else None
                if known is None:
                    with open(path, "rb") as file:
                        known = hashlib.file_digest(file, "sha256").hexdigest()
                    if large:
                        self.write(self._path(identity), json.dumps([*identity, known]).encode())
                self._known[identity] = known
            return self._known[identity]
        except OSError as error:
            raise MovaError(f"{path}: cannot be read ({error.strerror})") from None

    def _path(self, identity: _Identity) -> Path:
        key = hashlib.sha256(identity[0].encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def _stored(self, identity: _Identity) -> str | None:
        try:
            *stored, digest = json.loads(self._path(identity).read_bytes())
        except (OSError, ValueError):
            return None
        return digest if tuple(stored) == identity else None
