"""The formats of files that are signed: where each keeps C2PA's manifests, and the parts whose digests are stated."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mova_engine.data.media.mp4_boxes import C2PA_TYPE, Box, boxes, is_c2pa, is_mp4, without_c2pa
from mova_engine.data.media.wav_chunks import chunks, is_c2pa_chunk, is_wav, without_c2pa_chunk

# Bytes of a file's beginning that tell its format.
HEAD = 12


class FilePart(NamedTuple):
    """A part of a file in words: what it holds, and what is said where it is not as it was signed."""

    words: str
    changed: str


@dataclass(frozen=True)
class SignedFormat:
    """mime: by which C2PA knows it. is_of: whether a file that begins with these HEAD bytes is of this format.

    pieces: of a file's bytes its boxes or chunks in a row; MovaError where they end before the file says. is_store:
    whether a piece holds C2PA's manifests. without_store: a file without these. mark: bytes that are in every signed
    file. headed: whether something precedes the manifests in their piece. parts: by the kind of their pieces.
    """

    mime: str
    is_of: Callable[[bytes], bool]
    pieces: Callable[[bytes], Iterator[Box]]
    is_store: Callable[[bytes, Box], bool]
    without_store: Callable[[bytes], bytes]
    mark: bytes
    headed: bool
    parts: Mapping[str, FilePart]


MP4 = SignedFormat(
    "video/mp4",
    is_mp4,
    boxes,
    is_c2pa,
    without_c2pa,
    mark=C2PA_TYPE,
    headed=True,
    parts={
        "mdat": FilePart("pictures or sound", "its pictures or sound (mdat) were changed after it was signed"),
        "moov": FilePart("header", "its header (moov: times, sizes, tables) was changed after it was signed"),
    },
)
WAV = SignedFormat(
    "audio/wav",
    is_wav,
    chunks,
    is_c2pa_chunk,
    without_c2pa_chunk,
    # The description of the box of boxes (JUMBF) that the chunk holds.
    mark=b"jumdc2pa",
    headed=False,
    parts={
        "data": FilePart("sound", "its sound (data) was changed after it was signed"),
        "fmt": FilePart("header", "its header (fmt: rate, sample format) was changed after it was signed"),
    },
)
FORMATS = (MP4, WAV)
NAMES = "an mp4 or wav file"


def format_of(head: bytes) -> SignedFormat | None:
    """The format of a file that begins with these HEAD bytes; None for one that is not signed."""
    return next((each for each in FORMATS if each.is_of(head)), None)


def content_digests(data: bytes) -> dict[str, str]:
    """SHA-256 of a file that is not signed, and of each of its format's parts. Raises MovaError for one cut short."""
    digests = {"sha256": hashlib.sha256(data).hexdigest()}
    form = format_of(data[:HEAD])
    if form is None:
        return digests
    parts = {name: hashlib.sha256() for name in form.parts}
    for piece in form.pieces(data):
        if (name := _name(piece)) in parts:
            parts[name].update(memoryview(data)[piece.begin : piece.end])
    return digests | {name: part.hexdigest() for name, part in parts.items()}


def differing_parts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The parts in words whose digests, by `content_digests`, are not the same."""
    return [part.words for form in FORMATS for name, part in form.parts.items() if one.get(name) != other.get(name)]


def _name(piece: Box) -> str:
    return piece.kind.decode("latin-1").strip()
