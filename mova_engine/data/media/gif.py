"""Whether a GIF file is whole. It has no checksums, but its blocks follow each other (GIF89a specification)."""

from pathlib import Path

_SCREEN, _IMAGE, _CONTROL = 13, 10, b"\x04"
_IMAGES, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL = 0xF9


def why_broken(path: str | Path) -> str | None:
    """What tells that bytes are missing or wrong, in words; None where nothing does, as in a file that is cut short.

    The media library searches for the next picture, and the time for which those that are missing stay is missing.
    """
    data = Path(path).read_bytes()
    full: int | None = None  # how long blocks of a picture are, but for its last
    place = _SCREEN + _colours(data, _SCREEN - 3)
    while place < len(data):
        begin, kind = place, data[place]
        if kind == _TRAILER:
            return None
        if kind == _IMAGES:
            place += _IMAGE + _colours(data, place + _IMAGE - 1) + 1
        elif kind == _EXTENSION:
            place += 2
            if data[place - 1 : place] == bytes([_GRAPHIC_CONTROL]) and data[place : place + 1] not in (b"", _CONTROL):
                return f"bytes are missing or wrong before byte {place}"
        elif kind == 0:
            place += 1  # some programs put these between blocks
            continue
        else:
            return f"bytes are missing or wrong before byte {begin}"
        lengths = []
        while place < len(data) and data[place]:
            lengths.append(data[place])
            place += 1 + data[place]
        place += 1
        if kind == _IMAGES and len(lengths) > 1:
            even = set(lengths[:-1]) == {lengths[0]}
            if full is None:
                full = lengths[0] if even else 0
            # Of a program that writes blocks of any length nothing can be told.
            if full and not (even and lengths[0] == full):
                return f"bytes are missing or wrong between bytes {begin} and {place}"
    return None


def _colours(data: bytes, place: int) -> int:
    """Bytes of a table of colours, by the flags at `place`."""
    flags = data[place] if place < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
