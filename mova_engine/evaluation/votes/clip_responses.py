"""A clip over HTTP, in parts, filled up to a size that tells nothing of it."""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_PART = 1 << 16


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last of what a Range header asks of `size` bytes; None for all.

    What is no single range of bytes is answered with all, as the standard allows (RFC 9110, 14.2). Raises ValueError
    for a range outside.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < begin:
            return None
    if begin >= size or begin >= end:
        raise ValueError(f"range {header} lies outside of {size} bytes")
    return begin, end


def filled_bytes(path: Path, size: int, begin: int, end: int) -> Iterator[bytes]:
    """Bytes begin..end of an mp4 file that is filled up to `size` bytes by a box without meaning ("free")."""
    length = path.stat().st_size
    box = struct.pack(">I4s", size - length, b"free")
    with open(path, "rb") as file:
        file.seek(min(begin, length))
        while begin < end:
            if begin < length:
                data = file.read(min(_PART, end - begin, length - begin))
                if not data:
                    return  # cut short while it is read: the client sees that bytes are missing
            else:
                until = min(end, begin + _PART)
                head = box[begin - length : until - length] if begin - length < len(box) else b""
                data = head + bytes(until - begin - len(head))
            begin += len(data)
            yield data
