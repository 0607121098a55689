"""Sorts lists of clips into buckets. Of long lists the rows of each bucket are files beside the list's table.

TABLE-buckets-KEY/facts.json       of each bucket its clips and means of what it keeps; clips that fit in none
TABLE-buckets-KEY/NUMBER.u32       the rows of a bucket's clips, in the order of the list
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from mova_engine.config.buckets import bucket_name
from mova_engine.config.model import ClipConfig
from mova_engine.data.bucket_choice import NONE, Kept, chosen, kept
from mova_engine.data.clip_sizes import ClipSizes
from mova_engine.data.clip_table import ClipTable, TableRows, one_writer
from mova_engine.data.metadata import Entry
from mova_engine.errors import MovaError, counted

# Increased whenever the rule or the layout of the files changes.
VERSION = 1
FACTS = "facts.json"
# Clips of a table that are sorted at once.
BLOCK = 1 << 16


@dataclass(frozen=True)
class ClipBucket:
    """A bucket: the shape of its clips, the clips, and the mean shares of them that it keeps."""

    clip: ClipConfig
    entries: Sequence[Entry]
    kept: Kept

    @property
    def name(self) -> str:
        return bucket_name(self.clip)


@dataclass(frozen=True)
class SortedClips:
    """A list's clips by bucket, empty ones too. reasons: id -> why a clip is in none, of short lists. left_out: how
    many are in none.
    """

    buckets: tuple[ClipBucket, ...]
    left_out: int = 0
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def used(self) -> tuple[ClipBucket, ...]:
        """The buckets that have clips."""
        return tuple(each for each in self.buckets if len(each.entries))


def sort_clips(
    entries: Sequence[Entry],
    shapes: Sequence[ClipConfig],
    cache: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SortedClips:
    """The clips by the bucket that each goes to, see `bucket_choice`; within a bucket in the order of the list.

    cache: the folder in which the sizes of files are kept. Sizes that the list states are taken as they are; other
    files are opened. progress: called with the number of clips done, and of all. Raises MovaError for a table that does
    not state all sizes, and UnreachableError if the clips' place does not answer.
    """
    if isinstance(entries, ClipTable):
        return _sorted_table(entries, shapes)
    found: list[list[Entry]] = [[] for _ in shapes]
    sums, reasons = np.zeros((len(shapes), len(Kept._fields))), dict[str, str]()
    for entry, size in ClipSizes(cache).all_of(entries, progress):
        if isinstance(size, MovaError):
            reasons[entry.id] = str(size)
            continue
        sizes = np.array([size], np.float64)
        number = int(chosen(sizes, shapes)[0])
        if number == NONE:
            least = min(shape.duration for shape in shapes)
            reasons[entry.id] = (
                f"{entry.path}: too short for every bucket: {size.seconds:.3f} s, the least is {least:.3f}"
            )
            continue
        found[number].append(entry)
        sums[number] += np.ravel(kept(sizes, shapes[number]))
    buckets = (
        ClipBucket(shape, own, _mean(total, len(own))) for shape, own, total in zip(shapes, found, sums, strict=True)
    )
    return SortedClips(tuple(buckets), len(reasons), reasons)


def _mean(sums: np.ndarray, count: int) -> Kept:
    return Kept(*(sums / max(count, 1)))


def _sorted_table(table: ClipTable, shapes: Sequence[ClipConfig]) -> SortedClips:
    key = hashlib.sha256(json.dumps([VERSION, [asdict(shape) for shape in shapes]]).encode()).hexdigest()[:16]
    folder = table.folder.with_name(f"{table.folder.name}-buckets-{key}")
    if not folder.is_dir():
        try:
            with one_writer(folder):
                if not folder.is_dir():
                    _write(folder, table, shapes)
        except OSError as error:
            raise MovaError(f"cannot write {folder}: {error.strerror or error}") from None
    facts = json.loads((folder / FACTS).read_bytes())
    buckets = []
    for number, (shape, said) in enumerate(zip(shapes, facts["buckets"], strict=True)):
        rows = np.memmap(folder / f"{number}.u32", "<u4", "r") if said["clips"] else np.empty(0, np.uint32)
        if len(rows) != said["clips"]:
            raise MovaError(f"{folder}: {bucket_name(shape)} is cut short: remove it")
        buckets.append(ClipBucket(shape, TableRows(table, rows, said["digest"]), Kept(*said["kept"])))
    return SortedClips(tuple(buckets), facts["left_out"])


def _write(folder: Path, table: ClipTable, shapes: Sequence[ClipConfig]) -> None:
    """Write the rows of each bucket, whole or not at all."""
    made = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    made.mkdir(parents=True)
    counts, left_out = np.zeros(len(shapes), np.int64), 0
    sums, digests = np.zeros((len(shapes), len(Kept._fields))), [hashlib.sha256() for _ in shapes]
    try:
        with ExitStack() as files:
            written = [files.enter_context(open(made / f"{number}.u32", "wb")) for number in range(len(shapes))]
            for first, sizes in _blocks(table):
                numbers = chosen(sizes, shapes)
                left_out += int((numbers == NONE).sum())
                for number, shape in enumerate(shapes):
                    own = np.flatnonzero(numbers == number)
                    rows = (own + first).astype("<u4").tobytes()
                    written[number].write(rows)
                    digests[number].update(rows)
                    counts[number] += len(own)
                    sums[number] += np.sum(kept(sizes[own], shape), axis=1)
        facts = [
            {"clips": int(count), "kept": list(_mean(total, int(count))), "digest": digest.hexdigest()[:16]}
            for count, total, digest in zip(counts, sums, digests, strict=True)
        ]
        (made / FACTS).write_text(json.dumps({"buckets": facts, "left_out": left_out}))
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _blocks(table: ClipTable) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, sizes) of the table's clips. Raises MovaError if one does not state its size."""
    for first in range(0, len(table), BLOCK):
        sizes = table.shown(first, BLOCK)
        unstated = np.flatnonzero(sizes[:, 2] == 0)
        if len(unstated):
            raise MovaError(
                f"clip '{table[first + int(unstated[0])].id}' does not state width, height and duration, which buckets "
                f"of lists of {counted(len(table), 'clip')} need: add these columns (mova data index --sizes does)"
            )
        yield first, sizes
