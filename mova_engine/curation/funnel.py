"""The funnel of a run: from hours of film to clips, and filter by filter to what is kept. Counts alone, no seconds."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.verdicts import Verdict
from mova_engine.errors import MovaError, counted
from mova_engine.files.atomic import require_file

if TYPE_CHECKING:
    import pyarrow as pa

FUNNEL = "funnel.json"
# Verdict, the filter that is named, kind of clip.
_Group = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class FilmCounts:
    """What clips were cut of. seconds: of all units together. failed: units that were put aside."""

    films: int = 0
    units: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class FilterCounts:
    """One filter, in the run's order. clips, seconds: what no earlier filter dropped; dropped: of these, what this one
    drops; unknown: what it cannot decide and no other filter drops, where no earlier one is undecided.
    """

    name: str
    text: str
    clips: int
    seconds: float
    dropped: int
    dropped_seconds: float
    unknown: int

    @property
    def drop_rate(self) -> float:
        """Share of the clips that came to it."""
        return self.dropped / self.clips if self.clips else 0.0


@dataclass(frozen=True)
class Funnel:
    """verdicts, seconds: {verdict: clips, their seconds}. kinds: {kind of clip: {verdict: clips}}."""

    films: FilmCounts
    filters: tuple[FilterCounts, ...]
    verdicts: Mapping[Verdict, int]
    seconds: Mapping[Verdict, float]
    kinds: Mapping[str, Mapping[str, int]]

    @property
    def clips(self) -> int:
        """All clips."""
        return sum(self.verdicts.values())

    def json(self) -> bytes:
        """What `read_funnel` reads; equal funnels give equal bytes."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True) + "\n").encode()


@dataclass
class FunnelCounter:
    """Counts tables of judged clips, one after the other. filters: (name, text), in the run's order."""

    filters: Sequence[tuple[str, str]]
    _clips: Counter[_Group] = field(default_factory=Counter)
    _seconds: dict[_Group, float] = field(default_factory=dict[_Group, float])

    def add(self, table: "pa.Table") -> None:
        """table: with the columns verdict, dropped_by, kind, frames and fps."""
        import pyarrow as pa

        pc = compute()
        names = ("verdict", "dropped_by", "kind")
        columns = {name: table[name].cast(pa.string()) for name in names}
        columns["seconds"] = pc.divide(table["frames"].cast(pa.float64()), table["fps"].cast(pa.float64()))
        found = (
            pa.table(columns)
            .group_by(list(names), use_threads=False)
            .aggregate([("seconds", "count"), ("seconds", "sum")])
        )
        for row in found.to_pylist():
            key = (row["verdict"], row["dropped_by"], row["kind"])
            self._clips[key] += row["seconds_count"]
            self._seconds[key] = self._seconds.get(key, 0.0) + (row["seconds_sum"] or 0.0)

    def funnel(self, films: FilmCounts) -> Funnel:
        """What was counted."""
        left, seconds_left = sum(self._clips.values()), sum(self._seconds.values())
        filters: list[FilterCounts] = []
        for name, text in self.filters:
            dropped, seconds = self._sum(self._clips, "drop", name), self._sum(self._seconds, "drop", name)
            unknown = int(self._sum(self._clips, "unknown", name))
            filters.append(
                FilterCounts(name, text, left, round(seconds_left, 3), int(dropped), round(seconds, 3), unknown)
            )
            left, seconds_left = left - int(dropped), seconds_left - seconds
        verdicts: tuple[Verdict, ...] = ("keep", "drop", "unknown")
        kinds: dict[str, dict[str, int]] = {}
        for (verdict, _, kind), count in sorted(self._clips.items(), key=str):
            of_kind = kinds.setdefault(kind or "", {})
            of_kind[verdict] = of_kind.get(verdict, 0) + count
        return Funnel(
            films,
            tuple(filters),
            {verdict: int(self._sum(self._clips, verdict)) for verdict in verdicts},
            {verdict: round(self._sum(self._seconds, verdict), 3) for verdict in verdicts},
            kinds,
        )

    @staticmethod
    def _sum(counts: Mapping[_Group, float], verdict: str, name: str | None = None) -> float:
        return sum(n for (found, by, _), n in counts.items() if found == verdict and name in (None, by))


def funnel_of(tables: "Iterable[pa.Table]", filters: Sequence[tuple[str, str]], films: FilmCounts) -> Funnel:
    """The funnel of judged clips."""
    counter = FunnelCounter(filters)
    for table in tables:
        counter.add(table)
    return counter.funnel(films)


def read_funnel(out: Path) -> Funnel:
    """The funnel in a run's folder. MovaError where there is none, or it is damaged."""
    path = out / FUNNEL
    require_file(path)
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        filters = tuple(FilterCounts(**each) for each in told["filters"])
        return Funnel(FilmCounts(**told["films"]), filters, told["verdicts"], told["seconds"], told["kinds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MovaError(f"{path} is damaged ({error}): run mova curate again, which makes it anew") from None


def told_funnel(funnel: Funnel) -> list[str]:
    """The funnel as lines of a terminal."""
    films = funnel.films
    failed = f", {films.failed} of {films.units} units failed" if films.failed else ""
    lines = [
        f"{films.seconds / 3600:.2f} h of {counted(films.films, 'film')}{failed} -> {counted(funnel.clips, 'clip')}"
    ]
    width = max((len(each.name) for each in funnel.filters), default=0)
    for each in funnel.filters:
        unsure = f", cannot decide {each.unknown}" if each.unknown else ""
        lines.append(f"  {each.name:{width}}  of {each.clips} drops {each.dropped} ({each.drop_rate:.1%}){unsure}")
    unknown = funnel.verdicts["unknown"]
    unsure = f", {unknown} unknown" if unknown else ""
    lines.append(f"{funnel.verdicts['keep']} clips kept, {funnel.seconds['keep'] / 3600:.2f} h{unsure}")
    return lines
