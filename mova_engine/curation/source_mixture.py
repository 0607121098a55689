"""Mixtures: of each source as many hours as its weight says, the same films on every machine."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mova_engine.curation.source_lists import SourceOfFilms
from mova_engine.curation.source_units import FileUnits
from mova_engine.errors import MovaError, counted


@dataclass(frozen=True)
class SourceShare:
    """What is taken of a source: films and hours, of how many."""

    name: str
    weight: float | None
    films: int
    hours: float
    of_films: int
    of_hours: float

    def line(self) -> str:
        """For people."""
        films = f"{self.films} of {counted(self.of_films, 'film')}"
        weight = "" if self.weight is None else f" (weight {self.weight:g})"
        return f"{self.name}{weight}: {films}, {self.hours:.2f} of {self.of_hours:.2f} h"


def mixed(
    sources: Sequence[SourceOfFilms], found: Sequence[FileUnits], seed: int = 0
) -> tuple[list[FileUnits], list[SourceShare]]:
    """What is taken of the films that were found, in their order, and the shares of the sources.

    Without weights that is all. Otherwise hours are taken in the ratio of the weights (1 where none is given), as many
    as the source allows that has the fewest for its weight. Which films these are is decided by a hash of the seed and
    of the film's content and part, whatever the films are called and in which order they are found. Raises MovaError
    for weights where a source has no hours.
    """
    own = {source.name: [each for each in found if each.file.source == source.name] for source in sources}
    hours = {name: sum(each.seconds for each in films) / 3600 for name, films in own.items()}
    wanted = {name: float("inf") for name in own}
    if any(source.weight is not None for source in sources):
        weights = {source.name: source.weight or 1.0 for source in sources}
        if empty := next((name for name in weights if not hours[name]), None):
            raise MovaError(f"{empty}: gives no hours of film, which its weight asks for: leave it out")
        hours_of_one = min(hours[name] / weight for name, weight in weights.items())
        wanted = {name: weight * hours_of_one for name, weight in weights.items()}
    taken = {id(each) for name, films in own.items() for each in _some(films, wanted[name], seed)}
    shares = list[SourceShare]()
    for source in sources:
        films = [each for each in own[source.name] if id(each) in taken]
        some = sum(each.seconds for each in films) / 3600
        everything = len(own[source.name]), hours[source.name]
        shares.append(SourceShare(source.name, source.weight, len(films), some, *everything))
    return [each for each in found if id(each) in taken], shares


def _some(films: Sequence[FileUnits], hours: float, seed: int) -> Iterator[FileUnits]:
    """Films in the order of their hashes, until they are `hours` long; the one that reaches that is the last."""
    total = 0.0
    for each in sorted(films, key=lambda each: _hash(each, seed)):
        # Rounding must not leave out the last film of a source that is taken whole.
        if total >= hours * 3600 * (1 - 1e-9):
            return
        yield each
        total += each.seconds


def _hash(each: FileUnits, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {each.digest} {each.file.span}".encode()).digest()
