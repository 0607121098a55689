"""What some formats say of their own packets, beside the container's stamps: FLAC's numbers, FFV1's checksums.

The media library reads past both: it counts FLAC in Ogg on after a loss, and shows parts of an earlier picture for a
slice of FFV1 whose checksum is wrong.
"""

import zlib

from av.packet import Packet

# Each slice of FFV1 (RFC 9043, 4.9) ends with its size in 3 bytes, an error status and a checksum of 4.
_FOOTER, _SIZE = 8, 3
# FFV1's CRC-32 takes the highest bit of a byte first, zlib's the lowest.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def flac_sample(packet: Packet, block: int) -> int | None:
    """The number of a FLAC frame's first sample by its header (RFC 9639, 9.1); None where there is no such header.

    block: samples of a frame where the stream has a fixed block size, whose headers number frames.
    """
    data = bytes(packet)[:16]
    if len(data) < 12 or data[0] != 0xFF or data[1] & 0xFE != 0xF8:
        return None
    # Coded as UTF-8 codes characters, with up to seven bytes.
    lead = data[4]
    more = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    tail = data[5 : 5 + more]
    if more < 0 or (lead >= 0x80 and not more) or any(byte & 0xC0 != 0x80 for byte in tail):
        return None
    number = lead if not more else lead & (0x3F >> more)
    for byte in tail:
        number = number << 6 | byte & 0x3F
    return number if data[1] & 1 else number * block


def ffv1_is_whole(packet: Packet) -> bool:
    """Whether every slice of a packet of FFV1 has its right checksum; False too where the stream has none."""
    data = bytes(packet)
    end = len(data)
    while end > _FOOTER:
        size = int.from_bytes(data[end - _FOOTER : end - _FOOTER + _SIZE]) + _FOOTER
        # From and to zero: with its checksum behind it a slice gives 0.
        part = data[max(0, end - size) : end].translate(_REVERSED)
        if size > end or zlib.crc32(part, 0xFFFFFFFF) != 0xFFFFFFFF:
            return False
        end -= size
    return end == 0 and bool(data)
