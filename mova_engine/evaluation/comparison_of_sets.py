"""Two evaluations compared on the clips that both have: the mean difference of each number, with an interval."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.errors import MovaError
from mova_engine.evaluation.column_summary import bootstrap_interval
from mova_engine.evaluation.evaluation_run import TABLE
from mova_engine.evaluation.score_parquet import ScoreRows, read_parquet


@dataclass(frozen=True)
class PairedDifference:
    """Of one number: the means of both on the `clips` that both have, and the mean of second minus first.

    interval: 95 % of the means of differences drawn anew, clip by clip; None for fewer than two clips.
    """

    column: str
    clips: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float] | None
    better: str

    @property
    def verdict(self) -> str:
        """ "first" or "second" where the interval leaves out 0 and the number has a better side, else ""."""
        if not self.better or self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return ""
        return "second" if (self.difference > 0) == (self.better == "up") else "first"


def compare(first: Path, second: Path) -> tuple[list[PairedDifference], int]:
    """What two evaluations' folders say of the clips that have the same name in both, and how many those are.

    Where both are of a bench, clips are those of the same id and category, with the mean over a clip's files.

    Raises MovaError for what is no evaluation, for another version, convention, weights or recogniser of a score, and
    where no clip is in both.
    """
    tables = [read_parquet(folder / TABLE) for folder in (first, second)]
    of_bench = all("id" in row for table in tables for row in table.rows.values())
    rows = [_by_id(table) if of_bench else table.rows for table in tables]
    common = sorted(rows[0].keys() & rows[1].keys())
    if not common:
        raise MovaError(f"{first} and {second} have no clip of the same {'id' if of_bench else 'name'}")
    found = []
    for column, about in tables[0].columns.items():
        other = tables[1].columns.get(column)
        if other is None:
            continue
        for fact in ("version", "convention", "weights", "recogniser"):
            if about.get(fact) != other.get(fact):
                told = f"{fact} {_short(about.get(fact))} in {first}, {_short(other.get(fact))} in {second}"
                raise MovaError(f"{column} cannot be compared: {told}; evaluate both anew")
        pairs = [(rows[0][clip][column], rows[1][clip][column]) for clip in common]
        known = np.array([pair for pair in pairs if None not in pair], np.float64)
        if len(known):
            found.append(_difference(column, known, about))
    return found, len(common)


def _by_id(table: ScoreRows) -> dict[str, dict[str, float | None]]:
    """{clip of a bench: its numbers}, the mean over its files."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows.values():
        found.setdefault(f"{row['category']}/{row['id']}", []).append(row)
    return {
        clip: {name: _mean(each[name] for each in files) for name in table.columns} for clip, files in found.items()
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _short(fact: str | None) -> str:
    """A fact as a message tells it: digests by their beginning."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1...", fact) if fact else "none"


def _difference(column: str, pairs: np.ndarray, about: dict[str, Any]) -> PairedDifference:
    differences = pairs[:, 1] - pairs[:, 0]
    first, second = pairs.mean(0).tolist()
    return PairedDifference(
        column, len(pairs), first, second, float(differences.mean()), bootstrap_interval(differences), about["better"]
    )
