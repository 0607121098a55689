"""Numbers that others published for a bench, from published_rows.yaml: shown beside a user's own, never among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mova_engine.evaluation.benches.bench_summary import BenchNumber

FILE = Path(__file__).with_name("published_rows.yaml")


@dataclass(frozen=True)
class PublishedModel:
    """A model's numbers, by the names that the bench gives them, as they are printed there."""

    model: str
    values: Mapping[str, str]


@dataclass(frozen=True)
class PublishedTable:
    """convention: whose definitions the numbers follow. unknown: what the source does not say."""

    bench: str
    title: str
    source: str
    convention: str
    unknown: tuple[str, ...]
    remarks: tuple[str, ...]
    rows: tuple[PublishedModel, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The numbers that some model has."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row.values))

    def differences(self, numbers: Sequence[BenchNumber]) -> list[str]:
        """Which of one's own numbers follow another convention than these, and so cannot be compared with them."""
        own = {number.asked.name: number.convention for number in numbers if number.convention}
        unlike = [name for name in self.names if own.get(name, self.convention) != self.convention]
        return [f"{name} (yours: {own[name]}, theirs: {self.convention})" for name in unlike]


def published_tables(bench: str) -> list[PublishedTable]:
    """The tables of a bench; none for a bench that nobody published numbers of."""
    # Numbers stay text: none is computed with, and 0.220 is not 0.22.
    tables: list[dict[str, Any]] = yaml.load(FILE.read_text(encoding="utf-8"), yaml.BaseLoader)
    return [
        PublishedTable(
            bench,
            table["title"],
            table["source"],
            table["convention"],
            tuple(table["unknown"]),
            tuple(table["remarks"]),
            tuple(PublishedModel(row["model"], row["values"]) for row in table["rows"]),
        )
        for table in tables
        if table["bench"] == bench
    ]
