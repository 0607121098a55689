"""A bench's numbers from the rows of an evaluation: by category, and summed up as its authors publish them.

Coverage counts the clips that the bench asks for, not the files that were found: a clip without a file has no number,
and that is its reason. Where a prompt was sampled several times, the clip's number is the mean over its files, and the
interval is over clips.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.evaluation.benches.bench_items import AskedNumber, Bench
from mova_engine.evaluation.benches.clip_matching import ItemFiles
from mova_engine.evaluation.column_summary import CONFIDENCE, RESAMPLES, ColumnSummary, summarise

NO_FILE = "no file of this id"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class BenchNumber:
    """One number of a bench. total: over all its categories, by its rule; categories: {name: of its clips}.

    unit, better: of the number. convention: that its score followed; "" where it was not measured. notes: what weakens
    the number.
    """

    asked: AskedNumber
    total: ColumnSummary
    categories: dict[str, ColumnSummary]
    unit: str = ""
    better: str = ""
    convention: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _ItemValue:
    """A clip's number; of a ratio the part above the line, with the part below in `per`. reason: why it has none."""

    value: float | None
    per: float | None = 1.0
    reason: str | None = None


def number_of_rows(
    bench: Bench, asked: AskedNumber, found: ItemFiles, rows: Mapping[str, Row], absent: str | None = None
) -> BenchNumber:
    """A number of single clips. rows: {name of a file: its row} of every file in `found`.

    absent: why its score was not measured; the number then has no clips, and this reason.
    """
    files = dict(zip(found.items, found.files, strict=True))
    values: dict[str, list[_ItemValue]] = {}
    for item in bench.asked(asked.categories):
        value = _ItemValue(None, reason=absent) if absent else _of_item(asked, files[item], rows)
        values.setdefault(item.category, []).append(value)
    parts = {name: _summary(asked, each) for name, each in values.items()}
    if asked.rule == "clips" or len(parts) < 2:
        return BenchNumber(asked, _summary(asked, [value for each in values.values() for value in each]), parts)
    return BenchNumber(asked, _mean_of_categories(asked, parts, values), parts)


def _of_item(asked: AskedNumber, files: Sequence[Path], rows: Mapping[str, Row]) -> _ItemValue:
    if not files:
        return _ItemValue(None, reason=NO_FILE)
    own = [rows[file.as_posix()] for file in files]
    value = _mean_of_files(own, asked.column)
    per = _mean_of_files(own, asked.per) if asked.per else 1.0
    if value is None or per is None:
        return _ItemValue(None, reason=own[0][f"why_{asked.score}"])
    return _ItemValue(value, per)


def _mean_of_files(rows: Sequence[Row], column: str) -> float | None:
    known = [row[column] for row in rows if row[column] is not None]
    return float(np.mean(known)) if known else None


def _summary(asked: AskedNumber, values: Sequence[_ItemValue]) -> ColumnSummary:
    plain = summarise(asked.name, [each.value for each in values], [each.reason for each in values])
    if not asked.per:
        return plain
    pairs = np.array([(x.value, x.per) for x in values if x.value is not None], np.float64).reshape(-1, 2)
    below = float(pairs[:, 1].sum())
    if not below:
        return ColumnSummary(asked.name, plain.asked, 0, reasons=plain.reasons)
    interval = None
    if len(pairs) > 1:
        drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
        sums = pairs[drawn].sum(1)
        interval = _interval(sums[:, 0] / np.where(sums[:, 1] > 0, sums[:, 1], np.nan))
    mean = float(pairs[:, 0].sum()) / below
    return ColumnSummary(asked.name, plain.asked, plain.scored, mean, interval, reasons=plain.reasons)


def _mean_of_categories(
    asked: AskedNumber, parts: Mapping[str, ColumnSummary], values: Mapping[str, Sequence[_ItemValue]]
) -> ColumnSummary:
    total = joined_categories(asked.name, parts)
    # A category of one clip does not vary: the interval would be too narrow.
    if total.mean is None or min(part.scored for part in parts.values()) < 2:
        return total
    drawn = np.random.default_rng(0)
    resampled = []
    for each in values.values():
        x = np.array([value.value for value in each if value.value is not None])
        resampled.append(x[drawn.integers(0, len(x), (RESAMPLES, len(x)))].mean(1))
    return replace(total, interval=_interval(np.mean(resampled, 0)))


def joined_categories(name: str, parts: Mapping[str, ColumnSummary]) -> ColumnSummary:
    """The mean of the categories' numbers; None where a category has none: a mean of the others is another number."""
    reasons = Counter[str]()
    for part in parts.values():
        reasons.update(part.reasons)
    counts = sum(part.asked for part in parts.values()), sum(part.scored for part in parts.values())
    means = [part.mean for part in parts.values() if part.mean is not None]
    mean = float(np.mean(means)) if len(means) == len(parts) else None
    return ColumnSummary(name, *counts, mean, reasons=dict(reasons))


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.nanquantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
