"""What models said about clips, in a folder: one row for each clip and role, by what it was made from.

Rows come in parts of JSON lines, each written whole; when a run ends, they are one file, sorted. Of two rows of one key
that with an answer counts, then the first part's, in the order of names.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.files.atomic import clear_stale, write_atomic

WHOLE = "captions.jsonl"
# Rows that a part has, about.
_PART = 64
Row = Mapping[str, Any]


class CaptionStore:
    """The rows of a folder. May be used by several threads; `close` makes one file of all parts.

    Raises MovaError for a folder that cannot be written, and for a file in it that holds something else.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MovaError(f"{folder}: no folder can be made there ({error.strerror})") from None
        clear_stale(folder)
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._new: list[Row] = []
        for path in self._files():
            for row in _read(path):
                if row["key"] not in self._rows or self._rows[row["key"]].get("passing"):
                    self._rows[row["key"]] = row

    def get(self, key: str) -> Row | None:
        """The row of a key; None where there is none."""
        with self._lock:
            return self._rows.get(key)

    def put(self, row: Row) -> None:
        """Keep a row: {"key", "clip", "role", "passing", ...}; passing: another run is to ask again."""
        with self._lock:
            self._rows[row["key"]] = row
            self._new.append(row)
            if len(self._new) >= _PART:
                self._write_part()

    def close(self) -> None:
        """Write what is not written yet, and all parts as one file."""
        with self._lock:
            self._write_part()
            files = self._files()
            if not files or files == [self.folder / WHOLE]:
                return
            rows = sorted(self._rows.values(), key=lambda row: (row["clip"], row["role"], row["key"]))
            write_atomic(self.folder / WHOLE, _lines(rows))
            for path in files:
                if path.name != WHOLE:
                    path.unlink(missing_ok=True)

    def _write_part(self) -> None:
        if self._new:
            data = _lines(self._new)
            write_atomic(self.folder / f"part-{hashlib.sha256(data).hexdigest()[:16]}.jsonl", data)
            self._new = []

    def _files(self) -> list[Path]:
        """The whole file first, then the parts."""
        return sorted(self.folder.glob("*.jsonl"), key=lambda path: (path.name != WHOLE, path.name))


def row_key(*parts: str) -> str:
    """A digest of all that a row was made from."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(path: Path) -> list[Row]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise MovaError(f"{path} cannot be read as rows of captions: {error}") from None
    if not all(isinstance(row, dict) and {"key", "clip", "role"} <= row.keys() for row in rows):
        raise MovaError(f"{path} holds something else than rows of captions; move it away")
    return rows


def _lines(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=True, sort_keys=True) + "\n" for row in rows).encode()
