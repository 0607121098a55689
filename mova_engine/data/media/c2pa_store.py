"""The store of manifests in C2PA's box (boxes of JUMBF): its random parts made to follow from its content, and checked.

Each assertion of a manifest has a salt of 16 random bytes; the claim holds the assertions' hashes, other assertions may
too, and the signature covers the claim (C2PA 2.2, 8.4.2.3 and 10.3). New salts change these hashes and the signature,
all of the same length, so that they are put in the places of the old ones.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mova_engine.data.media.mp4_boxes import Box, boxes
from mova_engine.errors import MovaError

_MANIFEST, _SALT = b"c2ma", b"c2sh"
# The boxes that hold others, by what their kind begins with, with the labels that they may have, if given; then what
# each kind ends with, and the flags: requestable, with a label.
_HOLDERS = {
    b"c2pa": (b"c2pa",),
    _MANIFEST: (),
    b"c2as": (b"c2pa.assertions",),
    b"c2cl": (b"c2pa.claim", b"c2pa.claim.v2"),
    b"c2cs": (b"c2pa.signature",),
}
_LABELS = {label for labels in _HOLDERS.values() for label in labels}
_KIND_END, _FLAGS = bytes.fromhex("00110010800000aa00389b71"), 3


@dataclass(frozen=True)
class Resigned:
    """asked: what was signed. sign: signs it."""

    asked: bytes
    sign: Callable[[bytes], bytes]


def repeatable_store(store: bytes, signature: Resigned, drawn: bytes) -> bytes:
    """The store (what C2PA's box holds) with the salts of its newest manifest derived from `drawn`, signed again."""
    data = bytearray(store)
    begin = data.index(b"jumb") - 4
    manifests = [box for box in _within(data, next(boxes(data, begin))) if _kind(data, box) == _MANIFEST]
    salted = [(box, salt) for box in _superboxes(data, manifests[-1]) if (salt := _salt(data, box)) is not None]
    hashes = [_hash(data, box) for box, _ in salted]
    for number, (_, salt) in enumerate(salted):
        data[salt : salt + 16] = hashlib.sha256(drawn + b"salt" + number.to_bytes(4, "big")).digest()[:16]
    asked = signature.asked
    # An assertion may hold the hash of another, which may hold that of a third.
    for _ in range(len(salted) + 1):
        fresh = [_hash(data, box) for box, _ in salted]
        if fresh == hashes:
            break
        for old, new in zip(hashes, fresh, strict=True):
            data, asked = data.replace(old, new), asked.replace(old, new)
        hashes = fresh
    old, new = signature.sign(signature.asked), signature.sign(asked)
    place = data.rindex(old)
    data[place : place + len(new)] = new
    return bytes(data)


def flaw_of_store(store: bytes, headed: bool) -> str:
    """What is wrong with the bytes of C2PA's box or chunk, all of which are given, that neither hash nor signature
    covers: the heads of boxes, and what fills the space kept for the signature. "" where nothing is.

    headed: whether a head precedes the boxes of manifests, as in mp4 files.
    """
    try:
        return _flaw(bytearray(store), headed)
    except MovaError as error:
        return str(error)


def _flaw(data: bytearray, headed: bool) -> str:
    wrong, place = False, 0
    if headed:
        head, (purpose, _, rest) = data[16:20], data[20:].partition(b"\0")
        wrong = any(head) or purpose not in (b"manifest", b"original", b"update") or any(rest[:8])
        place = len(data) - len(rest) + 8
    for box in (inner for outer in boxes(data, place) for inner in (*_superboxes(data, outer), outer)):
        described = _description(data, box)
        if described is None:
            wrong = True
            continue
        kind, end = _kind(data, box), bytes(data[described.content + 4 : described.content + 16])
        label = bytes(data[described.content + 17 : described.end]).partition(b"\0")[0]
        if end == _KIND_END and kind in _HOLDERS:
            wrong |= data[described.content + 16] != _FLAGS or bool(_HOLDERS[kind] and label not in _HOLDERS[kind])
        elif label in _LABELS:
            wrong = True
        if kind == b"c2cs":
            wrong |= not _is_filled(bytes(data[box.content : box.end]))
    return "was changed where nothing is stated" if wrong else ""


def _is_filled(signature: bytes) -> bool:
    """Whether what fills the space that a signature did not need is zeros, under the names "pad" and "pad2" (C2PA 2.2,
    13.2), and is followed by the payload, null: it is elsewhere.
    """
    end = -1
    for name in (b"\x63pad", b"\x64pad2"):
        place = signature.find(name + b"\x58"), signature.find(name + b"\x59"), signature.find(name + b"\x5a")
        begin = max(place) + len(name) + 1
        if max(place) < 0:
            continue
        # A string of bytes in CBOR: its length is in the bytes after the head.
        size = {0x58: 1, 0x59: 2, 0x5A: 4}[signature[begin - 1]]
        end = begin + size + int.from_bytes(signature[begin : begin + size], "big")
        if any(signature[begin + size : end]):
            return False
    return end < 0 or signature[end : end + 1] == b"\xf6"


def _within(data: bytearray, box: Box) -> Iterator[Box]:
    return boxes(data, box.content, box.end)


def _superboxes(data: bytearray, box: Box) -> Iterator[Box]:
    """All boxes of boxes within this one, the innermost first."""
    for inner in _within(data, box):
        if inner.kind == b"jumb":
            yield from _superboxes(data, inner)
            yield inner


def _description(data: bytearray, box: Box) -> Box | None:
    first = next(_within(data, box), None) if box.kind == b"jumb" else None
    return first if first is not None and first.kind == b"jumd" else None


def _kind(data: bytearray, box: Box) -> bytes:
    described = _description(data, box)
    return b"" if described is None else bytes(data[described.content : described.content + 4])


def _salt(data: bytearray, box: Box) -> int | None:
    """Where the 16 bytes of a box's salt begin."""
    described = _description(data, box)
    # The salt is a box at the end of the description: its length, its kind, its bytes.
    if (
        described is None
        or described.end - described.content < 24
        or data[described.end - 20 : described.end - 16] != _SALT
    ):
        return None
    return described.end - 16


def _hash(data: bytearray, box: Box) -> bytes:
    """The hash by which a box is referred to: of its content."""
    return hashlib.sha256(data[box.content : box.end]).digest()
