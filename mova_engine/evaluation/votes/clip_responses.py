"""A clip over HTTP, in parts, filled up to a size that tells nothing of it."""

import struct
from collections.abc import Iterator
from pathlib import Path

_PART = 1 << 16


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
