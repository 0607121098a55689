"""Timing: warm-up, turns taken by what is compared, medians, and the interval of a ratio."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mova_engine.backend import Backend

# A median of fewer says little, whatever the time allowed.
LEAST = 5
_RESAMPLES = 2000
_SEED = 2026


@dataclass(frozen=True)
class Timing:
    """Seconds: median, fastest and slowest of `runs`."""

    median: float
    fastest: float
    slowest: float
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> "Timing":
        return cls(statistics.median(times), min(times), max(times), len(times))


@dataclass(frozen=True)
class Ratio:
    """How many times faster: the median over pairs of runs, with its 95% bootstrap interval."""

    value: float
    low: float
    high: float
    pairs: int

    def text(self) -> str:
        return f"{self.value:.2f}x [{self.low:.2f}, {self.high:.2f}]"


def stopwatch(run: Callable[[], object], backend: Backend) -> Callable[[], float]:
    """`run`, and the device waited for; returns the seconds that it took."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        backend.synchronize()
        return time.perf_counter() - start

    return timed


def interleave(
    runs: Mapping[str, Callable[[], float]], *, rounds: int = 30, seconds: float | None = None
) -> dict[str, list[float]]:
    """Let all of `runs`, which return their seconds, take turns A B A B ..., so that a change of the machine's pace
    meets all of them alike.

    rounds: how often each runs, after one warm-up. seconds: no further round is begun after this long, but `LEAST` are
    made. Returns the seconds of every run; the i-th of each belong together.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for done in range(max(rounds, LEAST)):
        if done >= LEAST and seconds is not None and time.perf_counter() - begun > seconds:
            break
        for name, run in runs.items():
            times[name].append(run())
    return times


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """Median of `slower[i] / faster[i]` over pairs; the interval is of that median over resampled pairs (Efron, 1979).

    The resampling is seeded: the same times give the same interval.
    """
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    draw = random.Random(_SEED)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(_RESAMPLES))
    low, high = medians[round(0.025 * (_RESAMPLES - 1))], medians[round(0.975 * (_RESAMPLES - 1))]
    return Ratio(statistics.median(ratios), low, high, len(ratios))
