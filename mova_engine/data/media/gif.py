"""Detects missing or damaged bytes in GIF files. They have no checksums, but each block states its length, so that the
next one must begin where it ends (GIF89a specification).
"""

from pathlib import Path

_SCREEN, _IMAGE, _CONTROL = 13, 10, b"\x04"
_IMAGES, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_GRAPHIC_CONTROL = 0xF9


def why_broken(path: str | Path) -> str | None:
    """Return, as text, where bytes are missing or wrong; None if nothing shows it, as in a file that is only truncated.

    FFmpeg skips to the next picture and leaves out the durations of the missing ones, so that all later times are
    wrong.
    """
    data = Path(path).read_bytes()
    full: int | None = None  # length of all data blocks of a picture except its last
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
            place += 1  # a byte of padding, which some programs write
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
            # Programs that write blocks of varying lengths (full is 0) cannot be checked.
            if full and not (even and lengths[0] == full):
                return f"bytes are missing or wrong between bytes {begin} and {place}"
    return None


def _colours(data: bytes, place: int) -> int:
    """Size in bytes of the colour table whose flags are at `place`."""
    flags = data[place] if place < len(data) else 0
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
