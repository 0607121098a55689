"""The sizes of clips: what their list states, or what their files show, which is kept in the cache.

FOLDER/sizes/ab/abcd....json      [width, height, seconds] of a file, valid while its size and mtime stay
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from mova_engine.data.media.decode import probe_shown
from mova_engine.data.metadata import Entry, ShownSize
from mova_engine.data.shard_files import FileInShard
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file, write_atomic
from mova_engine.files.byte_ranges import UnreachableError, end_retries

# Increased whenever what is read of a file changes.
VERSION = 1
# Files that are opened at once, and clips that are looked at before the first is waited for.
THREADS, AHEAD = 4, 64


class ClipSizes:
    """The sizes of clips, by a cache in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "sizes"

    def all_of(
        self, entries: Sequence[Entry], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Iterator[tuple[Entry, ShownSize | MovaError]]:
        """Yield each clip with its size, or with why its file cannot be read, in their order. progress: called with the
        number of clips done, and of all. Raises UnreachableError if a place does not answer: its clips may be good.
        """
        unreached: list[UnreachableError] = []

        def look(entry: Entry) -> ShownSize | MovaError:
            if unreached:
                return unreached[0]
            try:
                return self.of(entry)
            except UnreachableError as error:
                unreached.append(error)
                return error
            except MovaError as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for first in range(0, len(entries), AHEAD):
                    some = entries[first : first + AHEAD]
                    stated = all(entry.shown is not None for entry in some)
                    found = [entry.shown for entry in some] if stated else pool.map(look, some)
                    for done, (entry, size) in enumerate(zip(some, found, strict=True), first + 1):
                        assert size is not None, "a size is stated or found"
                        if isinstance(size, UnreachableError):
                            raise size
                        yield entry, size
                        progress(done, len(entries))
            finally:
                end_retries()
                pool.shutdown(cancel_futures=True)

    def of(self, entry: Entry) -> ShownSize:
        """The size of one clip. Raises MovaError if its file cannot be read, or ends before the clip begins."""
        if entry.shown is not None:
            return entry.shown
        width, height, seconds = self._of_file(entry)
        if seconds <= entry.start:
            raise MovaError(f"{entry.path}: too short: it ends after {seconds:.3f} s, before {entry.start:g} s")
        return ShownSize(*entry.edit.shown_size(width, height), seconds - entry.start)

    def _of_file(self, entry: Entry) -> tuple[int, int, float]:
        if isinstance(entry.path, FileInShard):
            identity: list[Any] = [entry.path.sha256]
        else:
            status = require_file(entry.path)
            identity = [str(entry.path.absolute()), status.st_size, status.st_mtime_ns]
        key = hashlib.sha256(json.dumps([VERSION, *identity]).encode()).hexdigest()
        path = self.folder / key[:2] / f"{key}.json"
        with suppress(OSError, ValueError, TypeError):
            width, height, seconds = json.loads(path.read_bytes())
            return int(width), int(height), float(seconds)
        found = probe_shown(entry.path)
        with suppress(MovaError):  # it is read again by the next run
            write_atomic(path, json.dumps(found).encode(), sync=False)
        return found
