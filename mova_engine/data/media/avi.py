"""Detects missing or damaged bytes in AVI files. They have no timestamps or checksums, but each chunk states its
length, so that the next chunk must begin where it ends.
"""

import os
import re
from pathlib import Path
from typing import BinaryIO

_HEAD, _LIST = 8, 12
_ENTERED = (b"AVI ", b"AVIX", b"movi", b"rec ")
# Names inside the movi list: chunks of a stream, its index (ix00), and others that may occur between them.
_CHUNK = re.compile(rb"[0-9A-Fa-f]{2}[A-Za-z]{2}|ix[0-9A-Fa-f]{2}|JUNK|LIST|idx1")
_OUTSIDE = re.compile(rb"[ -~]{4}")


def why_broken(path: str | Path) -> str | None:
    """Return, as text, where bytes are missing or wrong; None if nothing shows it, as in a file that is only truncated.

    FFmpeg skips to the next chunk and numbers its frames as if nothing were missing, so that all later times are wrong.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        place = end = 0
        known = _OUTSIDE
        while place + _HEAD <= size:
            name, length, form = _head(file, place)
            if name == b"RIFF" and form == b"AVI " and place:
                return None  # another file, appended to this one
            if name == b"RIFF":
                end = place + _HEAD + length if length else size
            if not known.fullmatch(name) and name != b"RIFF":
                # Bytes after the end of the RIFF chunk are not part of the file.
                return f"bytes are missing or wrong before byte {place}" if place < end else None
            if name in (b"RIFF", b"LIST") and form in _ENTERED:
                known = _OUTSIDE if form in (b"AVI ", b"AVIX") else _CHUNK
                place += _LIST
                continue
            known = _OUTSIDE if name == b"idx1" else known
            place += _HEAD + length
            # Chunks begin at even offsets, but some programs write no padding.
            if length % 2 and not known.fullmatch(_head(file, place)[0]):
                place += 1
    return None


def _head(file: BinaryIO, place: int) -> tuple[bytes, int, bytes]:
    """Of the chunk at `place`: name, length in bytes, and list type (meaningful for RIFF and LIST only)."""
    file.seek(place)
    head = file.read(_LIST)
    return head[:4], int.from_bytes(head[4:8], "little"), head[8:]
