"""A clip over HTTP, in parts, filled up to a size that tells nothing of it."""

import hashlib
import struct
from collections.abc import Iterator
from pathlib import Path

_PART = 1 << 16
# The head of a box and a digest.
LEAST_FILLING = 8 + 32


def filled_bytes(path: Path, size: int, token: str, begin: int, end: int) -> Iterator[bytes]:
    """Bytes begin..end of an mp4 file that is filled up to `size` bytes, LEAST_FILLING more than its own at least, by a
    box without meaning ("free"). It holds a digest of the token, so that a clip shown beside itself has two digests.
    """
    length = path.stat().st_size
    box = struct.pack(">I4s", size - length, b"free") + hashlib.sha256(token.encode()).digest()
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
