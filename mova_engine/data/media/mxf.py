"""Detects missing or damaged bytes in MXF files (SMPTE 377). They have no timestamps or checksums, but each packet
states its length, so that the next one must begin where it ends.
"""

import os
from pathlib import Path

_KEY, _LABEL = 16, bytes.fromhex("060e2b34")
_PACK = bytes.fromhex("060e2b34020501010d010201")
_PARTITIONS, _RANDOM_INDEX = (b"\x01\x02", b"\x01\x03", b"\x01\x04"), b"\x01\x11"
# Bytes of a partition pack's value that hold the partition's offset in the file, and the size of its index.
_PLACE, _INDEXED = slice(8, 16), slice(40, 48)
# Most bytes that may precede the first pack (the run-in).
_RUN_IN = 1 << 16


def why_broken(path: str | Path) -> str | None:
    """Return, as text, where bytes are missing or wrong; None if nothing shows it.

    FFmpeg numbers frames and samples as if nothing were missing. A gap shows in a key that is not where the lengths put
    it, or in a partition that is not at its stated offset. The index is at the end of the file; without it FFmpeg shows
    pictures a frame or two late, so a file without one is reported too.
    """
    with open(path, "rb") as file:
        begin = max(file.read(_RUN_IN + _KEY).find(_PACK), 0)
        size = file.seek(0, os.SEEK_END)
        place, indexed = begin, False
        while place < size:
            file.seek(place)
            head = file.read(_KEY + 9)
            if len(head) < _KEY + 9:
                break
            if not head.startswith(_LABEL):
                return f"bytes are missing or wrong before byte {place}"
            more = head[_KEY] & 0x7F if head[_KEY] & 0x80 else 0
            length = int.from_bytes(head[_KEY + 1 : _KEY + 1 + more]) if more else head[_KEY]
            value = place + _KEY + 1 + more
            if head.startswith(_PACK) and head[12:14] == _RANDOM_INDEX:
                break
            if head.startswith(_PACK) and head[12:14] in _PARTITIONS:
                file.seek(value)
                pack = file.read(_INDEXED.stop)
                if int.from_bytes(pack[_PLACE]) != place - begin:
                    return f"bytes are missing or wrong before byte {place}"
                index = int.from_bytes(pack[_INDEXED])
                indexed |= 0 < index <= size - value
            place = value + length
    return None if indexed else "its index is missing, which says when pictures are shown"
