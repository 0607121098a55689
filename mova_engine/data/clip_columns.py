"""Clips as columns, some thousand rows at a time, as tables are written from manifests.

Rows of Parquet files come as columns already. A block of ordinary ones is checked column by column, with the same rules
as `metadata.entry_of` has for a row, at a tenth of the time. A block in which something is not ordinary is read row by
row, which tells what it is.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.data.clip_edit import EDIT_KEYS, NO_EDIT, ClipEdit, edit_of
from mova_engine.data.manifest_rows import SIZE_KEYS, parquet_batches, parquet_rows, rows_of
from mova_engine.data.metadata import LATEST_START, Entry, ShownSize, entry_of, shown_of
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.data.text import flaw
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import FileFacts

# Columns of an ordinary block; others are ignored, and these must not hold null.
PLAIN = ("id", "caption", "video_path")
SHARDED = ("id", "caption", "shard", "member", "offset", "size", "sha256")
FACTS = ("shard_size", "shard_modified", "shard_etag")
_DIGESTS = re.compile(r"[0-9a-f]*")


@dataclass(frozen=True)
class InShards:
    """Of each clip its shard (None: it is a file of its own), and where it lies in it; digests: 32 bytes each."""

    shards: Sequence[Shard | None]
    offsets: Sequence[int]
    sizes: Sequence[int]
    digests: bytes


@dataclass(frozen=True)
class ClipColumns:
    """Clips. names: the paths of files, and the names that files have in their shards. in_shards: None if none are.
    edits: None if none has one.
    """

    ids: Sequence[str]
    captions: Sequence[str]
    starts: Sequence[float]
    names: Sequence[str]
    in_shards: InShards | None
    shown: Sequence[ShownSize | None]
    edits: Sequence[ClipEdit] | None = None


def blocks_of(manifest: Path, size: int) -> Iterator[tuple[str, Sequence[int], ClipColumns]]:
    """Yield the clips of a manifest, about `size` at a time, as (what a row is called, the rows' numbers, clips).

    Raises MovaError as `metadata.entries_of`.
    """
    if manifest.suffix.lower() == ".parquet":
        for number, batch, others in parquet_batches(manifest, size):
            columns = batch.to_pydict()
            numbers = range(number, number + len(batch))
            block = _ordinary(manifest.parent, columns)
            if block is None:
                block = _by_rows(manifest, parquet_rows(number, batch, others))
            yield "row", numbers, block
        return
    rows = rows_of(manifest)
    while some := list(islice(rows, size)):
        yield some[0][0], [number for _, number, _ in some], _by_rows(manifest, iter(some))


def _by_rows(manifest: Path, rows: Iterator[tuple[str, int, Any]]) -> ClipColumns:
    entries = [entry_of(manifest.parent, f"{manifest}: {word} {number}", row) for word, number, row in rows]
    files = [entry.path if isinstance(entry.path, FileInShard) else None for entry in entries]
    found = None
    if any(files):
        found = InShards(
            [None if file is None else file.shard for file in files],
            [0 if file is None else file.offset for file in files],
            [0 if file is None else file.size for file in files],
            b"".join(bytes(32) if file is None else bytes.fromhex(file.sha256) for file in files),
        )
    names = [_name(entry) for entry in entries]
    shown = [entry.shown for entry in entries]
    starts = [entry.start for entry in entries]
    edits = [entry.edit for entry in entries]
    edits = edits if any(edits) else None
    return ClipColumns([e.id for e in entries], [e.caption for e in entries], starts, names, found, shown, edits)


def _name(entry: Entry) -> str:
    return entry.path.name if isinstance(entry.path, FileInShard) else str(entry.path)


def _ordinary(folder: Path, columns: dict[str, list[Any]]) -> ClipColumns | None:
    """A block whose rows are ordinary; None if one of them is not."""
    sharded = "shard" in columns
    for name in SHARDED if sharded else PLAIN:
        if None in columns.get(name, [None]):
            return None
    count = len(columns["id"])
    starts = columns.get("start") or [0.0] * count
    ids, captions, names = columns["id"], columns["caption"], columns["member" if sharded else "video_path"]
    if not (_are_numbers(starts, float) and _are_names(ids) and _are_names(names)):
        return None
    times = np.asarray(starts, np.float64)
    if not ((times >= 0) & (times <= LATEST_START)).all():
        return None
    if not all(type(text) is str and (text.isprintable() or flaw(text) is None) for text in captions):
        return None
    found = None
    if sharded:
        found = _ordinary_shards(folder, columns, count)
        if found is None:
            return None
    else:
        names = [os.path.join(folder, name) for name in names]
    edits = [NO_EDIT] * count
    given = {name: columns[name] for name in EDIT_KEYS if any(x is not None for x in columns.get(name, ()))}
    if given:
        try:
            edits = [edit_of(dict(zip(given, row, strict=True))) for row in zip(*given.values(), strict=True)]
        except MovaError:
            return None
    shown: list[ShownSize | None] = [None] * count
    if all(name in columns for name in SIZE_KEYS):
        sizes = zip(*(columns[name] for name in SIZE_KEYS), strict=True)
        parts: Iterator[dict[str, Any]] = (dict(zip(SIZE_KEYS, size, strict=True)) for size in sizes)
        shown = [shown_of(size, edit) for size, edit in zip(parts, edits, strict=True)]
    return ClipColumns(ids, captions, times.tolist(), names, found, shown, edits if any(edits) else None)


def _ordinary_shards(folder: Path, columns: dict[str, list[Any]], count: int) -> InShards | None:
    offsets, sizes, digests = columns["offset"], columns["size"], columns["sha256"]
    places = [*offsets, *sizes]
    if not (_are_numbers(places, int) and min(places) >= 0 and max(places) < 1 << 63):
        return None
    if not all(type(digest) is str and len(digest) == 64 for digest in digests):
        return None
    joined = "".join(digests)
    if not _DIGESTS.fullmatch(joined) or not _are_names(list(set(columns["shard"]))):
        return None
    facts = [columns.get(name) or [None] * count for name in FACTS]
    known: dict[tuple[Any, ...], Shard] = {}
    shards = []
    for key in zip(columns["shard"], *facts, strict=True):
        shard = known.get(key)
        if shard is None:
            address, size, modified, etag = key
            if not (type(size) in (int, type(None)) and type(modified) in (float, type(None))):
                return None
            if modified != modified:
                return None
            if etag is not None and (type(etag) is not str or not etag.isprintable()):
                return None
            place = address if "://" in address else str(folder / address)
            shard = known[key] = Shard(place, FileFacts(size, modified, etag))
        shards.append(shard)
    return InShards(shards, offsets, sizes, bytes.fromhex(joined))


def _are_names(texts: list[Any]) -> bool:
    return all(type(text) is str and text and text.isprintable() for text in texts)


def _are_numbers(values: list[Any], kind: type) -> bool:
    return set(map(type, values)) <= {kind}
