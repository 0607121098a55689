"""Timing: warm-up, interleaved runs of the candidates, medians, and the confidence interval of a ratio."""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mova_engine.backend import Backend

# What is said of times on a device that software stands in for.
EMULATED = "emulated: not a measurement"
# The least number of runs for a median, whatever the time limit.
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
    """Return a function that calls `run`, waits for the device, and returns the seconds that this took."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        backend.synchronize()
        return time.perf_counter() - start

    return timed


def interleave(
    runs: Mapping[str, Callable[[], float]], *, rounds: int = 30, seconds: float | None = None, least: int = LEAST
) -> dict[str, list[float]]:
    """Run all functions of `runs`, which return their seconds, in turns A B A B ..., so that a change of the machine's
    speed affects all of them.

    rounds: number of runs of each, after one warm-up. seconds: no further round starts after this time, but at least
    `least` rounds run. Returns name -> the seconds of every run; equal indices belong to the same round.
    """
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for done in range(max(rounds, least)):
        if done >= least and seconds is not None and time.perf_counter() - begun > seconds:
            break
        for name, run in runs.items():
            times[name].append(run())
    return times


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> Ratio:
    """The median of `slower[i] / faster[i]`, with its 95% interval by the bootstrap over pairs (Efron, 1979).

    The resampling is seeded: the same times give the same interval.
    """
    ratios = [a / b for a, b in zip(slower, faster, strict=True)]
    return Ratio(statistics.median(ratios), *median_interval(ratios), len(ratios))


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the median, by the seeded bootstrap (Efron, 1979); of few values about their extremes."""
    draw = random.Random(_SEED)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return medians[round(0.025 * (_RESAMPLES - 1))], medians[round(0.975 * (_RESAMPLES - 1))]
