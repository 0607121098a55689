"""The fingerprint of a clip list, stored in a checkpoint and compared on resume, to report added, changed or removed
clips.

A clip takes 16 bytes: 8 of the digest of its id, 4 of the digest of its caption, start and edit, 4 of the digest of its
file's content (zeros if it was not read). The ids themselves would be many times as long.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mova_engine.data.metadata import Entry
from mova_engine.errors import MovaError, counted

_ID, _TEXT, _CONTENT = 8, 4, 4
_UNREAD = bytes(_CONTENT)
_SHOWN = 3


class Changes(NamedTuple):
    """Descriptions of the changes. order: those that change the order of clips. contents: the others. "" for none."""

    order: str
    contents: str


def order_digest(ids: Iterable[str], shuffle: bool) -> str:
    """The digest of the order of clips from which a stream is drawn. A `ClipTable` has it from when it was written."""
    digest, between = hashlib.sha256(f"{shuffle}\n".encode()), ""
    for name in ids:
        digest.update((between + name).encode())
        between = "\n"
    return digest.hexdigest()[:16]


def marks(entries: Sequence[Entry], content: Callable[[Entry], str] | None) -> str:
    """The fingerprint of `entries`, as base64 text. content: returns the digest of a clip's file; None: not read."""
    found = bytearray()
    for entry in entries:
        found += _digest(entry.id)[:_ID] + _digest(entry.told)[:_TEXT]
        try:
            found += _UNREAD if content is None else _digest(content(entry))[:_CONTENT]
        except MovaError:  # the file was removed after it was read
            found += _UNREAD
    return base64.b64encode(found).decode()


def compare(then: str, now: str, entries: Sequence[Entry]) -> Changes:
    """Describe the changes between two fingerprints made by `marks`. entries: the clips of `now`."""
    old, new = _rows(then), _rows(now)
    before = {row[:_ID]: row for row in old}
    there = {row[:_ID] for row in new}
    added = [entry.id for entry, row in zip(entries, new, strict=True) if row[:_ID] not in before]
    gone = sum(key not in there for key in before)
    texts, files = [], []
    for entry, row in zip(entries, new, strict=True):
        was = before.get(row[:_ID], row)
        if was[_ID : _ID + _TEXT] != row[_ID : _ID + _TEXT]:
            texts.append(entry.id)
        if _UNREAD not in (was[-_CONTENT:], row[-_CONTENT:]) and was[-_CONTENT:] != row[-_CONTENT:]:
            files.append(entry.id)
    order = [f"{len(added)} new{_named(added)}"] if added else []
    order += [f"{gone} gone"] if gone else []
    if not order and [row[:_ID] for row in old] != [row[:_ID] for row in new]:
        order.append("the same ones in another order")
    contents = [f"{counted(len(texts), 'caption')} changed{_named(texts)}"] if texts else []
    contents += [f"{counted(len(files), 'file')} replaced{_named(files)}"] if files else []
    return Changes(", ".join(order), ", ".join(contents))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _rows(text: str) -> list[bytes]:
    data, size = base64.b64decode(text), _ID + _TEXT + _CONTENT
    return [data[first : first + size] for first in range(0, len(data), size)]


def _named(ids: Sequence[str]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return f" ({', '.join(map(repr, ids[:_SHOWN]))}{more})"
