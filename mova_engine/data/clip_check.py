"""Looks at clips ahead of training: each is decoded as the loader would, several at once, and the bad ones are counted.

What was found is written line by line to a ledger, so that a check that was stopped goes on where it was. A clip that
has changed since (another file, another start, another crop) is looked at again.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO

from mova_engine.config.buckets import NO_BUCKETS, BucketSettings, bucket_name, shortest
from mova_engine.config.model import ClipConfig
from mova_engine.data.bucketed import bucket_table, rows_of_sorted
from mova_engine.data.clip_buckets import sort_clips
from mova_engine.data.clip_sources import Sources, default_cache, named
from mova_engine.data.media.decode import Silent, read_clip
from mova_engine.data.metadata import Entry
from mova_engine.data.shard_files import FileInShard
from mova_engine.data.windows import list_clips
from mova_engine.errors import MovaError, counted
from mova_engine.files.atomic import require_file
from mova_engine.files.byte_ranges import UnreachableError, end_retries

# Kinds of reasons that the summary lists.
LISTED_KINDS = 20
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class CheckResult:
    """How many clips were looked at, now and before, and the reasons of the bad ones by kind."""

    clips: int
    before: int
    kinds: Counter[str]


def check_clips(
    sources: Sources,
    clip: ClipConfig,
    ledger: Path,
    *,
    workers: int = 2,
    silent: Silent = "refuse",
    pictures: bool = True,
    cut_every: float | None = None,
    overwrite: bool = False,
    say: Callable[[str], object] = print,
    progress: Callable[[int], None] = lambda done: None,
    buckets: BucketSettings = NO_BUCKETS,
) -> CheckResult:
    """Decode each clip of `sources`, `workers` at a time, and append what is found to `ledger`, a JSONL file.

    Its first line says what clips are decoded to; the others are {"id", "file", "reason"}, where the reason of a good
    clip is null. cut_every: as of `list_clips`. say: told the bad clips, and a summary. progress: called with the
    number of clips done. buckets: each clip is decoded in the size of its own, and the table of the buckets is told.
    Raises MovaError if the ledger is that of another check, and UnreachableError if a place does not answer.
    """
    wanted = shortest(buckets.shapes(clip))
    entries = list_clips(sources, default_cache(sources), wanted, cut_every, pictures)
    facts: dict[str, Any] = {"clip": asdict(clip), "silent": silent, "pictures": pictures}
    kinds, before, left_out = Counter[str](), 0, 0
    parts = [(clip, entries)]
    if buckets.given:
        shapes = buckets.shapes(clip)
        facts["buckets"] = [bucket_name(shape) for shape in shapes]
        sorted_clips = sort_clips(entries, shapes, default_cache(sources))
        parts, left_out = [(each.clip, each.entries) for each in sorted_clips.used], sorted_clips.left_out
        for identity, reason in sorted_clips.reasons.items():
            kinds[_NUMBER.sub("N", reason.partition(": ")[2])] += 1
            say(f"cannot be used: {identity}: {reason}")
        for line in bucket_table(rows_of_sorted(sorted_clips), left_out):
            say(line)
    try:
        known = {} if overwrite else _read(ledger, facts)
        ledger.parent.mkdir(parents=True, exist_ok=True)
        with open(ledger, "w" if overwrite else "a", encoding="utf-8") as file:
            if file.tell() == 0:
                _append(file, facts)
            found = chain.from_iterable(_found(some, shape, silent, pictures, known, workers) for shape, some in parts)
            for done, (entry, place, reason) in enumerate(found, 1):
                old = known.get(entry.id, (None, None))[0] == place
                before += old
                if not old:
                    _append(file, {"id": entry.id, "file": place, "reason": reason})
                if reason is not None:
                    kinds[_kind(reason, entry)] += 1
                    say(f"cannot be used: {entry.id}: {reason}")
                progress(done)
    except OSError as error:
        raise MovaError(f"cannot write {ledger}: {error.strerror or error}") from None
    again = f", {before} of them looked at before" if before else ""
    say(f"{named(sources)}: {counted(kinds.total(), 'clip')} of {len(entries)} cannot be used{again}")
    for kind, count in kinds.most_common(LISTED_KINDS):
        say(f"{count:8}  {kind}")
    return CheckResult(len(entries), before, kinds)


def _found(
    entries: Sequence[Entry],
    clip: ClipConfig,
    silent: Silent,
    pictures: bool,
    known: Mapping[str, tuple[str | None, str | None]],
    workers: int,
) -> Iterator[tuple[Entry, str, str | None]]:
    """Yield (clip, what identifies its file, why it cannot be used) in the order of the list."""

    # Once a place did not answer, clips that wait for a thread must not spend as much time again.
    unreached = list[UnreachableError]()

    def look(entry: Entry) -> tuple[Entry, str, str | None]:
        place = ""
        try:
            if unreached:
                raise unreached[0]
            place = _identity(entry)
            seen, reason = known.get(entry.id, (None, None))
            if seen == place:
                return entry, place, reason
            read_clip(entry.path, clip, start=entry.start, silent=silent, pictures=pictures, edit=entry.edit)
        except UnreachableError as error:
            unreached.append(error)
            raise
        except MovaError as error:
            return entry, place, str(error)
        return entry, place, None

    with ThreadPoolExecutor(workers) as pool:
        pending: list[Future[tuple[Entry, str, str | None]]] = []
        upcoming = iter(entries)
        try:
            while True:
                pending += [pool.submit(look, entry) for entry in islice(upcoming, 2 * workers - len(pending))]
                if not pending:
                    return
                yield pending.pop(0).result()
        finally:
            end_retries()
            pool.shutdown(cancel_futures=True)


def _identity(entry: Entry) -> str:
    """What tells whether a clip is the one that was looked at: its bytes in a shard, or its file's size and time."""
    place = f"@{entry.start!r}{f' {entry.edit}' if entry.edit else ''}"
    if isinstance(entry.path, FileInShard):
        return f"{entry.path.sha256} {place}"
    status = require_file(entry.path)
    return f"{entry.path} {status.st_size} {status.st_mtime_ns} {place}"


def _kind(reason: str, entry: Entry) -> str:
    """A reason without the file's name and without numbers."""
    return _NUMBER.sub("N", reason.removeprefix(f"{entry.path}: "))


def _read(ledger: Path, facts: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    """Id -> (identity, reason) of the clips in a ledger. A last line that is cut short counts for nothing."""
    known: dict[str, tuple[str | None, str | None]] = {}
    first = True
    with suppress(FileNotFoundError):
        lines = ledger.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines:
            try:
                row = json.loads(line)
                if first and row != json.loads(json.dumps(facts)):
                    raise MovaError(f"{ledger} is of another check: give another --out, or --overwrite")
                if not first:
                    known[row["id"]] = row["file"], row["reason"]
            except (ValueError, KeyError, TypeError):
                if first:
                    raise MovaError(f"{ledger} is no ledger of a check: give another --out") from None
            first = False
        if lines and not lines[-1].endswith("\n"):
            with open(ledger, "a", encoding="utf-8") as file:
                file.write("\n")
    return known


def _append(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
