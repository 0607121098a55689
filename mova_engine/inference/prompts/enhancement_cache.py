"""Keeps enhanced prompts in a folder, by what they were made from."""

import hashlib
from pathlib import Path

from mova_engine.files.atomic import write_atomic

# Bytes of an entry; a larger file is none of ours.
_MOST_BYTES = 1 << 20


class EnhancementCache:
    """A folder of JSON files. Several processes may use it: an entry appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def key(self, *parts: str | bytes) -> str:
        """A digest of all parts, told apart."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()[:40]

    def get(self, key: str) -> str | None:
        """An entry's text; None where there is none that can be read."""
        path = self.folder / f"{key}.json"
        try:
            if path.stat().st_size > _MOST_BYTES:
                return None
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def put(self, key: str, text: str) -> None:
        """Keep an entry. MovaError, with the system's reason, where it cannot be written."""
        write_atomic(self.folder / f"{key}.json", text.encode(), sync=False)
