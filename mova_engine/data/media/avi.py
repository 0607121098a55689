"""Whether an AVI file is whole. Its pictures have no stamps and no checksums, but lengths chain its chunks."""

import os
import re
from pathlib import Path
from typing import BinaryIO

_HEAD, _LIST = 8, 12
_ENTERED = (b"AVI ", b"AVIX", b"movi", b"rec ")
# Of a stream, of an index of it, and others that may stand among them.
_CHUNK = re.compile(rb"[0-9A-Fa-f]{2}[A-Za-z]{2}|ix[0-9A-Fa-f]{2}|JUNK|LIST|idx1")
_OUTSIDE = re.compile(rb"[ -~]{4}")


def why_broken(path: str | Path) -> str | None:
    """What tells that bytes are missing or wrong, in words; None where nothing does, as in a file that is cut short.

    The media library searches for the next chunk and counts on: the time of what is missing is missing.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        place = end = 0
        known = _OUTSIDE
        while place + _HEAD <= size:
            name, length, form = _head(file, place)
            if name == b"RIFF" and form == b"AVI " and place:
                return None  # another file, joined to this one
            if name == b"RIFF":
                end = place + _HEAD + length if length else size
            if not known.fullmatch(name) and name != b"RIFF":
                # What follows the file is none of it.
                return f"bytes are missing or wrong before byte {place}" if place < end else None
            if name in (b"RIFF", b"LIST") and form in _ENTERED:
                known = _OUTSIDE if form in (b"AVI ", b"AVIX") else _CHUNK
                place += _LIST
                continue
            known = _OUTSIDE if name == b"idx1" else known
            place += _HEAD + length
            # Chunks begin at even places, but some programs forget it.
            if length % 2 and not known.fullmatch(_head(file, place)[0]):
                place += 1
    return None


def _head(file: BinaryIO, place: int) -> tuple[bytes, int, bytes]:
    """A chunk's name, length, and what it is a list of."""
    file.seek(place)
    head = file.read(_LIST)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]
