"""Timing: warm-up, repeated runs, the median and its spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from mova_engine.backend import Backend


@dataclass(frozen=True)
class Timing:
    """Seconds: median, fastest and slowest of `runs`."""

    median: float
    fastest: float
    slowest: float
    runs: int


def measure(
    run: Callable[[], object], backend: Backend, *, seconds: float = 1.0, least: int = 5, most: int = 200
) -> Timing:
    """Run once or twice to warm up, then for about `seconds`, at least `least` and at most `most` times."""
    for _ in range(2):
        run()
    backend.synchronize()
    times: list[float] = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        run()
        backend.synchronize()
        times.append(time.perf_counter() - start)
    return Timing(statistics.median(times), min(times), max(times), len(times))
