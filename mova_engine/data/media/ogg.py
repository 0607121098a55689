"""Which packets of an Ogg file stand beside pages that are lost, by the pages' numbers and checksums (RFC 3533, 6).

The media library skips pages whose checksum is wrong, and does not read the numbers.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

# A page's checksum takes the highest bit of a byte first, zlib's the lowest.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MARK, _HEAD = b"OggS\0", 27
_SUM = slice(22, 26)
_FIRST = 2
_BLOCK = 1 << 16


@dataclass
class _Stream:
    """What is known of one logical stream up to the page read last."""

    begun: bool = False
    beginning_lost: bool = False
    number: int | None = None
    place: int = 0
    unfinished: bool = False
    beside: set[int] = field(default_factory=set)


class Pages:
    """The pages of a file up to where another recording follows. Streams are numbered as the media library does."""

    def __init__(self, path: str | Path) -> None:
        streams: dict[int, _Stream] = {}
        with open(path, "rb") as file:
            for place, page in _pages(file):
                if page[5] & _FIRST and any(stream.begun for stream in streams.values()):
                    break
                stream = streams.setdefault(int.from_bytes(page[14:18], "little"), _Stream())
                number = int.from_bytes(page[18:22], "little")
                follows = number == (0 if stream.number is None else stream.number + 1)
                if not follows:
                    stream.beside.add(place)
                    if stream.unfinished:
                        stream.beside.add(stream.place)
                    stream.beginning_lost |= not stream.begun
                # Pages of headers state 0, those on which no packet ends -1.
                stream.begun |= int.from_bytes(page[6:14], "little", signed=True) > 0
                stream.number, stream.place = number, place
                stream.unfinished = page[26] > 0 and page[_HEAD + page[26] - 1] == 255
        self._streams = list(streams.values())

    def is_beside_a_loss(self, stream: int, position: int) -> bool:
        """Whether the packet at a byte of the file belongs to the first page after a loss, or to the last before one
        where that ends amid a packet, which the media library completes with another's rest.
        """
        return stream < len(self._streams) and position in self._streams[stream].beside

    def lacks_beginning(self, stream: int) -> bool:
        """Whether a page is lost up to the first one with data: a header, or the first data."""
        return stream < len(self._streams) and self._streams[stream].beginning_lost


def pages_of(path: str | Path) -> Pages:
    """The pages of a file, read once as long as it stays the same: each clip of a recording opens it again."""
    status = Path(path).stat()
    return _read(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> Pages:
    return Pages(path)


def _pages(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Place and content of each page with the right checksum."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(_HEAD + 255)
        if len(head) < _HEAD:
            return
        if head.startswith(_MARK):
            count = head[_HEAD - 1]
            file.seek(place)
            page = file.read(_HEAD + count + sum(head[_HEAD : _HEAD + count]))
            if _is_whole(page):
                yield place, page
                place += len(page)
                continue
        place = _next(file, place + 1)


def _is_whole(page: bytes) -> bool:
    bare = page[: _SUM.start] + bytes(4) + page[_SUM.stop :]
    found = zlib.crc32(bare.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{found:032b}"[::-1], 2) == int.from_bytes(page[_SUM], "little")


def _next(file: BinaryIO, place: int) -> int:
    """Where the next mark of a page stands from `place` on; the file's end where there is none."""
    file.seek(place)
    while data := file.read(_BLOCK):
        found = data.find(_MARK)
        if found >= 0:
            return place + found
        place += max(1, len(data) - len(_MARK) + 1)
        file.seek(place)
    return place
