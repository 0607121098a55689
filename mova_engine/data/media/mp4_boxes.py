"""The boxes of mp4 files (ISO/IEC 14496-12): the header put before the data, the box that C2PA adds taken out."""

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mova_engine.errors import MovaError

# The user type of C2PA's box (C2PA 2.2, A.5.1).
C2PA_TYPE = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
# Boxes that hold the tables of chunk offsets, from the outside in.
_TO_OFFSETS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


class Box(NamedTuple):
    """A box of a file's bytes: its kind, where it begins, where its content begins, where it ends."""

    kind: bytes
    begin: int
    content: int
    end: int


def boxes(data: bytes | bytearray, begin: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes that lie in a row from `begin` to `end`. MovaError for bytes that are none, or are cut short."""
    end = len(data) if end is None else end
    while begin < end:
        if end - begin < 8:
            raise MovaError("is cut short within the head of a box")
        size, kind = struct.unpack_from(">I4s", data, begin)
        content = begin + 8
        if size == 1 and end - begin >= 16:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        elif size == 0:
            size = end - begin
        if size < content - begin:
            raise MovaError(f"holds a box of {size} bytes, which is no size")
        if begin + size > end:
            raise MovaError(f"is cut short: its box '{kind.decode('latin-1')}' has {begin + size - end} bytes fewer")
        yield Box(kind, begin, content, begin + size)
        begin += size


def is_mp4(head: bytes) -> bool:
    """Whether a file that begins with these bytes is an mp4 or QuickTime file."""
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def is_c2pa(data: bytes | bytearray, box: Box) -> bool:
    """Whether this is the box in which C2PA keeps its manifests."""
    return box.kind == b"uuid" and data[box.content : box.content + 16] == C2PA_TYPE


def without_c2pa(data: bytes) -> bytes:
    """An mp4 file without C2PA's boxes: the bytes that were signed, where signing has added a box. Raises MovaError."""
    return _rebuilt(data, [box for box in boxes(data) if not is_c2pa(data, box)])


def header_first(data: bytes) -> bytes:
    """An mp4 file whose header (moov) comes before its data, so that players begin before all of it has come."""
    found = list(boxes(data))
    kinds = [box.kind for box in found]
    if kinds.count(b"moov") != 1 or b"mdat" not in kinds or kinds.index(b"moov") < kinds.index(b"mdat"):
        return data
    header = found.pop(kinds.index(b"moov"))
    found.insert(kinds.index(b"mdat"), header)
    return _rebuilt(data, found)


def _rebuilt(data: bytes, order: list[Box]) -> bytes:
    """The boxes in this order, with the chunk offsets that follow from it."""
    places, place = dict[int, int](), 0
    for box in order:
        places[box.begin] = place
        place += box.end - box.begin

    def moved(offset: int) -> int:
        for box in order:
            if box.begin <= offset < box.end:
                return offset - box.begin + places[box.begin]
        return offset

    parts = [bytearray(data[box.begin : box.end]) for box in order]
    for part in parts:
        if part[4:8] == b"moov":
            _move_offsets(part, 0, len(part), 0, moved)
    return b"".join(parts)


def _move_offsets(data: bytearray, begin: int, end: int, depth: int, moved: Callable[[int], int]) -> None:
    for box in boxes(data, begin, end):
        if depth < len(_TO_OFFSETS) and box.kind == _TO_OFFSETS[depth]:
            _move_offsets(data, box.content, box.end, depth + 1, moved)
        elif depth == len(_TO_OFFSETS) and box.kind in (b"stco", b"co64"):
            width = ">I" if box.kind == b"stco" else ">Q"
            (count,) = struct.unpack_from(">I", data, box.content + 4)
            first, step = box.content + 8, struct.calcsize(width)
            if first + count * step > box.end:
                raise MovaError("has a table of chunk offsets that is cut short")
            for at in range(first, first + count * step, step):
                struct.pack_into(width, data, at, moved(struct.unpack_from(width, data, at)[0]))
