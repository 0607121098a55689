"""Computes the time of each audio sample from a file's timestamps: divides the frames into runs without gaps, and
estimates the drift of the timestamps within each run.

A frame's *offset* is its timestamp minus the time that the number of samples before it implies. Four causes of offsets
are distinguished:

* *jitter*: offsets that scatter around a constant (containers round to milliseconds, recorders use a coarse clock).
  They are averaged;
* *drift*: offsets that grow steadily, as two clocks diverge. The sound is stretched to follow the timestamps;
* a *step*: the offset changes from one frame to the next, and stays. Sound was lost or repeated: a new run begins;
* a *wrong sample rate*: a drift larger than clocks have. It is an error.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mova_engine.errors import MovaError

# Seconds. A smaller change of the offset between two frames is jitter or drift, not a step.
STEP = 5e-3
# Seconds. Steps whose sizes differ by less are taken as equal.
SAME = 2e-3
# Number of frames on each side of a change that decide whether it lasts.
WITNESSES = 9
# Seconds. Sound is stretched if its timestamps would otherwise be off by more.
DRIFT = 5e-4
# Seconds between the points at which the rate of a drift may change.
KNOTS = 0.5
# Largest drift of a clock, as a fraction: 5 %. More is a wrong sample rate.
SLOWEST = 0.05


@dataclass(frozen=True)
class PacketRun:
    """Frames `first` to `last` - 1, whose samples follow each other without a gap.

    nominal, times: float64 [k], k >= 2, in seconds. The sample at `nominal[i]` (its index in the run / rate) sounds at
    `times[i]`; between these points the time is interpolated linearly. The first point is the run's start, the last
    its end.
    """

    first: int
    last: int
    nominal: np.ndarray
    times: np.ndarray

    @property
    def stretched(self) -> bool:
        """Whether the run has drift, so that its sound must be resampled."""
        return not np.allclose(np.diff(self.times), np.diff(self.nominal), rtol=0, atol=1e-9)


def find_runs(times: np.ndarray, lengths: np.ndarray) -> list[PacketRun]:
    """Divide frames into runs. times, lengths: float64 [n], each frame's timestamp and its duration (samples / rate),
    in seconds.

    Raises MovaError, without a file's name, if the drift is too large for a clock.
    """
    ends = np.cumsum(lengths)
    borders = [0, *_steps(times - (ends - lengths)), len(times)]
    return [
        PacketRun(first, last, *_curve(times[first:last], lengths[first:last]))
        for first, last in itertools.pairwise(borders)
    ]


def displaced(runs: list[PacketRun]) -> Iterator[tuple[float, PacketRun]]:
    """Yield (step in seconds, run) for each run before which the offset steps and after which it steps back by as much.

    Lost or repeated sound shifts all later offsets. A shift that is undone later means that the timestamps of the run,
    or of both its neighbours, are wrong.
    """
    steps = [later.times[0] - earlier.times[-1] for earlier, later in itertools.pairwise(runs)]
    for run, (step, back) in zip(runs[1:], itertools.pairwise(steps), strict=False):
        if abs(step) > STEP and abs(step + back) < SAME:
            yield step, run


def _steps(offsets: np.ndarray) -> list[int]:
    """Indices of the frames before which the offset steps. offsets: float64 [n], in seconds."""
    moves = np.diff(offsets)
    suspects = np.flatnonzero(np.abs(moves) > STEP)
    if not len(suspects):
        return []
    lag = max(1, min(len(moves) // 4, 4 * WITNESSES))
    drift = np.median(offsets[lag:] - offsets[:-lag]) / lag
    level = offsets - drift * np.arange(len(offsets))
    noise = _noise(offsets)
    borders = [0, len(offsets)]
    for k in suspects[np.argsort(-np.abs(moves[suspects]))] + 1:
        before = level[max(max(x for x in borders if x <= k), k - WITNESSES) : k]
        after = level[k : min(min(x for x in borders if x > k), k + WITNESSES)]
        # The standard error of a median of n normal values is 1.25 / sqrt(n) times their standard deviation.
        doubt = 6 * 1.25 * noise * np.sqrt(1 / len(before) + 1 / len(after))
        if abs(np.median(after) - np.median(before)) > max(STEP, doubt):
            borders.append(int(k))
    return sorted(borders)[1:-1]


def _curve(times: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nominal` and `times` of a run, by the simplest model of the offset that fits its timestamps: a constant; a
    straight line if its slope is significant; or a piecewise linear function.
    """
    starts = np.cumsum(lengths) - lengths
    end = starts[-1] + lengths[-1]
    offsets = times - starts
    ends = np.array([0.0, end])
    kept = _agreeing(starts, offsets)
    knots, values = ends, np.full(2, offsets[kept].mean())
    if len(times) > 2:
        line, error = _line(starts, offsets, kept)
        if abs(line[1]) * end > DRIFT and abs(line[1]) > error:
            values = line[0] + line[1] * ends
        departure = (offsets - np.interp(starts, knots, values))[kept]
        departure = _neighbours(departure).mean(axis=1)
        count = min(int(end / KNOTS), len(times) // 4) + 1
        if count > 2 and np.abs(departure).max() > DRIFT + 4 * _noise(offsets) / np.sqrt(WITNESSES):
            # Quantiles, so that each segment has timestamps.
            inner = np.quantile(starts[kept], np.linspace(0, 1, count)[1:-1])
            knots = np.unique(np.concatenate([[0.0], inner, [end]]))
            values = _corners(starts, offsets, kept, knots)
    slope = np.diff(values) / np.diff(knots)
    if np.abs(slope).max() > SLOWEST:
        found = 100 * slope[np.abs(slope).argmax()]
        raise MovaError(f"has sound whose timestamps do not fit its sample rate ({found:+.1f} %)")
    return knots, knots + values


def _agreeing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mask (bool [n]) of the points that lie near their neighbours: all but single wrong timestamps."""
    if len(x) < 3:
        return np.ones(len(x), bool)
    half = len(x) // 2
    slope = np.median((y[half:] - y[: len(y) - half]) / (x[half:] - x[: len(x) - half]))
    level = y - slope * x
    apart = np.abs(level - np.median(_neighbours(level), axis=1))
    return apart <= max(4 * 1.4826 * np.median(apart), 1e-3)


def _line(x: np.ndarray, y: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, float]:
    """Intercept and slope by least squares, and a bound on the error of the slope."""
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0:
        return np.array([np.median(y), 0.0]), 0.0
    middle = x - x.mean()
    slope = (middle @ y) / (middle @ middle)
    rest = y - y.mean() - slope * middle
    freedom = len(x) - 2
    error = np.sqrt((rest @ rest) / freedom / (middle @ middle))
    # Five standard errors, and more for few points, as in Student's t-distribution.
    return np.array([y.mean() - slope * x.mean(), slope]), float(error) * (5 + 100 / freedom**2)


def _corners(x: np.ndarray, y: np.ndarray, kept: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Values at the knots of the piecewise linear function that fits best (least squares)."""
    hats = np.stack([np.interp(x[kept], knots, row) for row in np.eye(len(knots))], axis=1)
    return np.linalg.lstsq(hats, y[kept], rcond=None)[0]


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Sliding windows [n, WITNESSES], each centred on its value; the ends are padded with the first and last value."""
    return sliding_window_view(np.pad(values, WITNESSES // 2, mode="edge"), WITNESSES)


def _noise(offsets: np.ndarray) -> float:
    """Standard deviation of the jitter, estimated robustly against a few steps."""
    moves = np.diff(offsets)
    # The 0.8 quantile, not the median: most changes of a coarse clock may be equal. 1.28 is its value for a standard
    # normal distribution; a difference of two values has sqrt(2) times their deviation.
    return float(np.quantile(np.abs(moves - np.median(moves)), 0.8)) / 1.28 / np.sqrt(2)
