"""What a set of clips says of one number: its mean with an interval, its coverage, its chance level."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
_DRAWS = 1 << 20  # numbers held at a time


@dataclass(frozen=True)
class ColumnSummary:
    """scored of asked clips have the number; mean, interval, low, median and high are None where none has.

    interval: 95 % of the means of clips drawn anew (bootstrap percentiles); None for a single clip. reasons: {why:
    clips} of the rest. chance: the mean for sound and pictures of different clips of the same set, where that exists.
    """

    column: str
    asked: int
    scored: int
    mean: float | None = None
    interval: tuple[float, float] | None = None
    low: float | None = None
    median: float | None = None
    high: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    chance: float | None = None


def summarise(
    column: str,
    values: Sequence[float | None],
    reasons: Sequence[str | None],
    chance: float | None = None,
    seed: int = 0,
) -> ColumnSummary:
    """values: one for each clip, None where it is missing; reasons: why, in the same order."""
    known = np.array([value for value in values if value is not None])
    missing = Counter(
        reason or "the score gave no such number"
        for value, reason in zip(values, reasons, strict=True)
        if value is None
    )
    if not len(known):
        return ColumnSummary(column, len(values), 0, reasons=dict(missing))
    return ColumnSummary(
        column,
        len(values),
        len(known),
        float(known.mean()),
        bootstrap_interval(known, seed),
        float(known.min()),
        float(np.median(known)),
        float(known.max()),
        dict(missing),
        chance,
    )


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Percentiles of the means of RESAMPLES sets drawn with replacement from values [n]; None for n = 1."""
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed)
    together = max(1, _DRAWS // len(values))
    counts = [min(together, RESAMPLES - done) for done in range(0, RESAMPLES, together)]
    means = np.concatenate([values[drawn.integers(0, len(values), (n, len(values)))].mean(1) for n in counts])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
