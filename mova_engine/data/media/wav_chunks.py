"""The chunks of wav files (RIFF, Microsoft and IBM 1991), and the one that C2PA adds taken out."""

import struct
from collections.abc import Iterator

from mova_engine.data.media.mp4_boxes import Box
from mova_engine.errors import MovaError

# The kind of the chunk in which C2PA keeps its manifests.
C2PA_CHUNK = b"C2PA"
# "RIFF", the bytes that follow, "WAVE".
_HEAD = 12


def is_wav(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a wav file."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def chunks(data: bytes | bytearray) -> Iterator[Box]:
    """The chunks of a wav file, without the byte that fills one of odd length up. MovaError for a file cut short."""
    begin = _HEAD
    while begin < len(data):
        if len(data) - begin < 8:
            raise MovaError("is cut short within the head of a chunk")
        kind, size = struct.unpack_from("<4sI", data, begin)
        end = begin + 8 + size
        if end > len(data):
            raise MovaError(f"is cut short: its chunk '{kind.decode('latin-1')}' has {end - len(data)} bytes fewer")
        yield Box(kind, begin, begin + 8, end)
        begin = end + size % 2


def is_c2pa_chunk(data: bytes | bytearray, chunk: Box) -> bool:
    """Whether this is the chunk in which C2PA keeps its manifests."""
    return chunk.kind == C2PA_CHUNK


def without_c2pa_chunk(data: bytes) -> bytes:
    """A wav file without C2PA's chunks: the bytes that were signed, if signing has added one. Raises MovaError."""
    kept = [data[chunk.begin : chunk.end + (chunk.end - chunk.begin) % 2] for chunk in chunks(data)
            if chunk.kind != C2PA_CHUNK]  # fmt: skip
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, kept))) + b"WAVE" + b"".join(kept)
