"""Finds damaged packets of a Matroska file by the optional checksums of its clusters (RFC 9559, section 6.2), which
FFmpeg does not check. A cluster holds the packets of some seconds.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_CLUSTER = bytes.fromhex("1f43b675")
_HEADER, _SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")
# SeekHead, Info, Tracks, Cues, Tags, Chapters, Attachments.
_OTHERS = (
    *(bytes.fromhex("114d9b74"), bytes.fromhex("1549a966"), bytes.fromhex("1654ae6b"), bytes.fromhex("1c53bb6b")),
    *(bytes.fromhex("1254c367"), bytes.fromhex("1043a770"), bytes.fromhex("1941a469")),
)
_VOID, _SUM = b"\xec", b"\xbf\x84"
_BLOCK = 1 << 20


class Clusters:
    """The clusters of a file. A cluster's checksum is verified when one of its packets is first asked for."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._whole: dict[tuple[int, int], bool] = {}
        with open(path, "rb") as file:
            self._places = list(_places(file))
            self._summed = any(_sum(file, begin) is not None for begin, _ in self._places)
            self._cut = self._places[-1:] if self._places and self._places[-1][1] > file.seek(0, os.SEEK_END) else []

    def is_spoilt(self, position: int) -> bool:
        """Whether the packet at byte `position` is in no cluster, or in one whose checksum is wrong. Always False for
        files without checksums.
        """
        if not self._summed:
            return False
        place = next(((begin, end) for begin, end in reversed(self._places) if begin <= position < end), None)
        if place is None or place in self._cut:
            return place is None  # a truncated cluster cannot be verified
        if place not in self._whole:
            self._whole[place] = self._is_whole(*place)
        return not self._whole[place]

    def _is_whole(self, begin: int, end: int) -> bool:
        with open(self._path, "rb") as file:
            stated = _sum(file, begin)
            if stated is None:
                return False
            found, left = 0, end - file.tell()
            while left > 0 and (data := file.read(min(left, _BLOCK))):
                found, left = zlib.crc32(data, found), left - len(data)
        return found == stated


def _places(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yield the first byte of each cluster's content and the byte after its last, by the stated sizes."""
    size = file.seek(0, os.SEEK_END)
    place = 0
    while 0 <= place < size:
        file.seek(place)
        head = file.read(12)
        name = _VOID if head[:1] == _VOID else head[:4]
        length, data = _length(head[len(name) :]), place + len(name)
        if name == _SEGMENT and length is not None:
            place = data + length[1]
        elif length is None or length[0] is None or name not in (_HEADER, _CLUSTER, _VOID, *_OTHERS):
            place = _next(file, place + 1)
        else:
            begin, place = data + length[1], data + length[1] + length[0]
            if name == _CLUSTER:
                yield begin, place
                file.seek(place)
                if place != size and file.read(1) not in (_VOID, *(x[:1] for x in (_CLUSTER, *_OTHERS))):
                    place = _next(file, begin)  # its size is wrong, or the file is truncated


def _length(data: bytes) -> tuple[int | None, int] | None:
    """An EBML size (None: "unknown") and the number of bytes that encode it; None if they are no valid size."""
    count = 9 - data[0].bit_length() if data else 9
    if count > min(8, len(data)):
        return None
    value = int.from_bytes(data[:count]) & (1 << 7 * count) - 1
    return (None if value == (1 << 7 * count) - 1 else value), count


def _next(file: BinaryIO, place: int) -> int:
    """The offset of the next cluster from `place` on; -1 if there is none."""
    file.seek(place)
    before = b""
    while data := file.read(_BLOCK):
        found = (before + data).find(_CLUSTER)
        if found >= 0:
            return place - len(before) + found
        before, place = data[-3:], place + len(data)
    return -1


def _sum(file: BinaryIO, begin: int) -> int | None:
    """The checksum at `begin` of a cluster's content, None if it has none. Leaves the file position after it."""
    file.seek(begin)
    head = file.read(6)
    return int.from_bytes(head[2:], "little") if head.startswith(_SUM) and len(head) == 6 else None
