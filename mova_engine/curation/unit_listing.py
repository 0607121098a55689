"""From files to units: each file's digest and length, found by the engine's workers, since films are large and may be
anything.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.engine_work import Beat, Function
from mova_engine.curation.engines import Engine
from mova_engine.curation.source_units import units_of
from mova_engine.curation.units import SourceFile, Unit


@dataclass(frozen=True)
class Failure:
    """A unit, or a file that has none, that was tried often enough."""

    name: str
    step: str
    reason: str
    attempts: int


@dataclass(frozen=True)
class ListWork:
    """A file to its units. out: the curation's folder, which keeps digests."""

    out: Path
    unit_seconds: float

    def opened(self) -> Function:
        """See `Work`."""
        digests = CurationFolder(self.out).digests

        def units(file: SourceFile, beat: Beat) -> list[Unit]:
            return units_of(file, digests, self.unit_seconds)

        return units


@dataclass(frozen=True)
class Listed:
    """units: in order of their files' names and their starts. failures: files that cannot be read. twice: {unit's name:
    that of the unit with the same content}, which is left out.
    """

    units: tuple[Unit, ...]
    failures: tuple[Failure, ...]
    twice: dict[str, str]


def list_units(engine: Engine, work: ListWork, files: Iterable[SourceFile]) -> Listed:
    """The units of all files, each content once."""
    found: list[Unit] = []
    failures: list[Failure] = []
    for outcome in engine(work, files):
        if outcome.reason:
            failures.append(Failure(outcome.item.name, "list", outcome.reason, outcome.attempts))
        else:
            found += outcome.result
    first: dict[str, Unit] = {}
    twice: dict[str, str] = {}
    for unit in sorted(found, key=lambda each: (each.file.name, each.start)):
        if unit.key in first:
            twice[unit.name] = first[unit.key].name
        else:
            first[unit.key] = unit
    return Listed(tuple(first.values()), tuple(sorted(failures, key=lambda each: each.name)), twice)
