"""Units of films: which parts of which files workers decode, told by the files' content and length."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from mova_engine.curation.units import SourceFile, Unit
from mova_engine.data.media.decode import probe
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file, write_atomic
from mova_engine.files.byte_ranges import UnreachableError
from mova_engine.files.digests import Digests

# Seconds beyond which a file is taken for a stream without an end, or for one that states nonsense: four days.
LONGEST = 4 * 86400.0
# The least that is left to a unit of its own at a film's end: less goes to the one before.
LEAST_REST = 10.0
# Files that are handed to threads before the first is waited for.
AHEAD = 64


@dataclass(frozen=True)
class FailedFile:
    """A file of which no unit is made. reason: one line. repeats: it has the content of another file, which is used."""

    file: SourceFile
    reason: str
    repeats: bool = False


@dataclass(frozen=True)
class FileUnits:
    """A file's units, and the seconds that it declares of what is meant of it; 0: it declares none."""

    file: SourceFile
    digest: str
    units: tuple[Unit, ...]
    seconds: float


def source_units(
    files: Sequence[SourceFile],
    unit_seconds: float,
    known: Path,
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[FileUnits], list[FailedFile]]:
    """The units of files, in their order, and the files that give none, with reasons.

    Several files are opened at once. known: a folder that keeps digests and lengths, valid while a file's size and time
    of change stay. A part of a file that is listed twice is a unit once, of the file that comes first, whatever it is
    called. progress: called with the number of files done, and of all. Raises UnreachableError for a place that does
    not answer.
    """
    digests = Digests(known / "digests", _kept)
    look = partial(_looked_at, unit_seconds=unit_seconds, digests=digests, lengths=known / "lengths")
    found, failed, keys = list[FileUnits](), list[FailedFile](), dict[str, str]()
    for done, each in enumerate(_in_threads(look, files, threads), start=1):
        if isinstance(each, FailedFile):
            failed.append(each)
        else:
            own = tuple(unit for unit in each.units if unit.key not in keys)
            if own:
                found.append(FileUnits(each.file, each.digest, own, each.seconds))
            else:
                first = keys[each.units[0].key]
                reason = f"{each.file.path}: the same content as {first}, which is used"
                failed.append(FailedFile(each.file, reason, repeats=True))
            keys.update({unit.key: each.file.name for unit in own})
        progress(done, len(files))
    return found, failed


def _in_threads(
    look: Callable[[SourceFile], FileUnits | FailedFile], files: Sequence[SourceFile], threads: int
) -> Iterator[FileUnits | FailedFile]:
    upcoming = iter(files)
    with ThreadPoolExecutor(threads) as pool:
        pending = [pool.submit(look, file) for file in islice(upcoming, AHEAD)]
        try:
            while pending:
                yield pending.pop(0).result()
                pending += [pool.submit(look, file) for file in islice(upcoming, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def _looked_at(file: SourceFile, *, unit_seconds: float, digests: Digests, lengths: Path) -> FileUnits | FailedFile:
    try:
        digest, length = digests.of(file.path), _length(file.path, lengths)
        begin, end = file.span or (0.0, length)
        if length and begin >= length:
            raise MovaError(f"{file.path}: ends after {length:.3f} s, before the part that is listed at {begin:g} s")
        if length > LONGEST:
            raise MovaError(f"{file.path}: states {length:.0f} s, which is no length of a film: cut it into files")
    except UnreachableError:
        raise
    except MovaError as error:
        return FailedFile(file, str(error))
    end = min(end, length) if length else end
    # The last unit of a whole file goes on to its end, wherever that is.
    last = None if file.span is None or (length and file.span[1] >= length) else end
    units = tuple(Unit(file, digest, *span) for span in _spans(begin, end, last, unit_seconds))
    return FileUnits(file, digest, units, max(0.0, end - begin))


def _spans(begin: float, end: float, last: float | None, seconds: float) -> Iterator[tuple[float, float | None]]:
    count = max(1, math.ceil((end - begin) / seconds))
    if count > 1 and end - begin - (count - 1) * seconds < LEAST_REST:
        count -= 1
    for number in range(count):
        start = begin + number * seconds
        yield start, (last if number + 1 == count else start + seconds)


def _length(path: Path, lengths: Path) -> float:
    """The seconds that a file declares of its pictures, 0 if it declares none. Raises MovaError as `probe`."""
    status = require_file(path)
    key = json.dumps([os.path.abspath(path), status.st_size, status.st_mtime_ns]).encode("utf-8", "surrogatepass")
    name = hashlib.sha256(key).hexdigest()
    kept = lengths / name[:2] / f"{name}.json"
    with suppress(OSError, ValueError, TypeError):
        return float(json.loads(kept.read_bytes()))
    seconds = probe(path).duration
    _kept(kept, json.dumps(seconds).encode())
    return seconds


def _kept(path: Path, data: bytes) -> None:
    """Write what the next run would find out again."""
    with suppress(MovaError):
        write_atomic(path, data, sync=False)
