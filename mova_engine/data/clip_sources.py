"""Where a run's clips come from: folders, manifests, or several of either, as one sequence of entries.

Up to LISTED clips are held in memory; more are read from a table on disk (`data.clip_table`), which is made from the
manifest when it is first read. Both are a `Sequence[Entry]`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import overload

from mova_engine.data.clip_changes import order_digest
from mova_engine.data.clip_table import ClipTable, SomeClips, one_writer, table_folder, write_table
from mova_engine.data.manifest_rows import READERS
from mova_engine.data.metadata import Entry, distinct, entries_of, listing_of, read_captioned
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file
from mova_engine.files.byte_ranges import was_address

# Clips of a manifest that are held in memory.
LISTED = 100_000
# The folder of encoded clips beside those of a source, and the folder of tables in it.
CACHE, TABLES = "cache", "tables"

Sources = Path | Sequence[Path]


def as_sources(sources: Sources) -> tuple[Path, ...]:
    """One source or several as a tuple. Raises MovaError if there is none."""
    found = (sources,) if isinstance(sources, str | Path) else tuple(sources)
    if not found:
        raise MovaError("no clips: name a folder or a manifest")
    return tuple(Path(each) for each in found)


def named(sources: Sources) -> str:
    """Sources as messages name them."""
    return ", ".join(map(str, as_sources(sources)))


def home_of(source: Path) -> Path:
    """The folder of clips itself, or the folder in which a manifest lies."""
    return source.parent if source.suffix.lower() in READERS and not source.is_dir() else source


def default_cache(sources: Sources) -> Path:
    """Where encoded clips are kept unless another folder is named: beside those of the first source."""
    return home_of(as_sources(sources)[0]) / CACHE


def read_clips(sources: Sources, cache: Path | None = None, *, listed: int = LISTED) -> Sequence[Entry]:
    """The clips of folders and manifests, in their order. Their files are not opened.

    Of several sources the ids are those of each with the source's name in front. cache: the folder whose `tables` hold
    the lists of more than `listed` clips; None: that of `default_cache`.
    Raises MovaError as `read_metadata`, and if a long list cannot be written.
    """
    given = as_sources(sources)
    tables = (cache or default_cache(given)) / TABLES
    if len(given) == 1:
        return _read_one(given[0], tables, listed)
    twice = [name for name, count in Counter(_name(source) for source in given).items() if count > 1]
    if twice:
        raise MovaError(f"{named(given)}: two are called {twice[0]}: their names tell clips apart, so rename one")
    return JoinedClips([(_name(source), _read_one(source, tables, listed)) for source in given])


def _name(source: Path) -> str:
    return source.resolve().name if source.is_dir() else source.stem


def _read_one(source: Path, tables: Path, listed: int) -> Sequence[Entry]:
    if was_address(source) and not source.exists():
        raise MovaError(
            f"{source}: lists and folders of clips lie on this machine: copy it here; shards that a list names may be "
            "elsewhere"
        )
    manifest = source
    if source.suffix.lower() not in READERS or source.is_dir():
        if source.is_file():
            raise MovaError(f"{source}: a file, not a folder of clips, nor a list of them ({', '.join(READERS)})")
        listing = listing_of(source)
        if listing is None:
            return read_captioned(source)
        manifest = listing
    require_file(manifest)
    folder = table_folder(tables, manifest)
    if not folder.is_dir():
        found = entries_of(manifest)
        first = list(islice(found, listed + 1))
        if len(first) <= listed:
            return distinct(first, manifest)
        del first, found
        try:
            with one_writer(folder):
                if not folder.is_dir():
                    write_table(folder, manifest)
        except OSError as error:
            raise MovaError(
                f"cannot write {folder}: {error.strerror or error}; --loader.cache FOLDER keeps it elsewhere"
            ) from None
    return ClipTable(folder, manifest.parent)


class JoinedClips(Sequence[Entry]):
    """The clips of several named sources, one source after the other; the name stands in front of each id."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[Entry]]]) -> None:
        self._parts = parts
        self._count = sum(len(part) for _, part in parts)

    @property
    def order_digest(self) -> str | None:
        """The digest of names, and ids in order, made of those that tables hold; None where no source has a table."""
        return self._digest(lambda entry: entry.id, "order_digest")

    @property
    def content_digest(self) -> str | None:
        """The same of captions, starts and edits."""
        return self._digest(lambda entry: entry.told, "content_digest")

    def _digest(self, text: Callable[[Entry], str], of_table: str) -> str | None:
        if not any(isinstance(part, ClipTable) for _, part in self._parts):
            return None
        found = (
            f"{name} {getattr(part, of_table) if isinstance(part, ClipTable) else order_digest(map(text, part), True)}"
            for name, part in self._parts
        )
        return order_digest(found, True)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return SomeClips(self, range(self._count)[index])
        row = range(self._count)[index]
        for name, part in self._parts:
            if row < len(part):
                entry = part[row]
                return replace(entry, id=f"{name}/{entry.id}")
            row -= len(part)
        raise IndexError(index)

    def __iter__(self) -> Iterator[Entry]:
        return chain.from_iterable(
            (replace(entry, id=f"{name}/{entry.id}") for entry in part) for name, part in self._parts
        )
