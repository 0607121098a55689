"""The way in: from folders and lists to the units that workers are given."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.curation.source_lists import SourceOfFilms, read_sources
from mova_engine.curation.source_mixture import SourceShare, mixed
from mova_engine.curation.source_units import FailedFile, source_units
from mova_engine.curation.units import Unit
from mova_engine.errors import MovaError, counted


@dataclass(frozen=True)
class GatheredFilms:
    """What a run works on. units: by the names of their films, then by their starts. failed: films without units."""

    sources: tuple[SourceOfFilms, ...]
    shares: tuple[SourceShare, ...]
    units: tuple[Unit, ...]
    failed: tuple[FailedFile, ...]

    def lines(self) -> Iterator[str]:
        """What there is to say of them, for people."""
        for source, share in zip(self.sources, self.shares, strict=True):
            yield from source.lines()
            yield f"  taken: {share.line()}"
        if self.failed:
            yield f"{counted(len(self.failed), 'film')} cannot be used, the first: {self.failed[0].reason}"


def gather_films(
    raw: Sequence[Path],
    media: Sequence[Path],
    unit_seconds: float,
    known: Path,
    *,
    seed: int = 0,
    threads: int = 4,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> GatheredFilms:
    """The units of the films of folders and lists, of mixtures by their weights.

    Arguments: as of `read_sources`, `source_units` and `mixed`. Raises MovaError as these, and if no film gives a unit.
    """
    sources = read_sources(raw, media)
    files = [file for source in sources for file in source.files]
    found, failed = source_units(files, unit_seconds, known, threads=threads, progress=progress)
    if not found:
        raise MovaError(f"none of {counted(len(files), 'film')} can be used: {failed[0].reason}")
    taken, shares = mixed(sources, found, seed)
    units = [unit for each in taken for unit in each.units]
    units.sort(key=lambda unit: (unit.file.name, unit.start))
    return GatheredFilms(tuple(sources), tuple(shares), tuple(units), tuple(failed))
