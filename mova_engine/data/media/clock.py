"""When each sample sounds: runs without gaps, and the drift of a file's timestamps against its count of samples.

Timestamps and sample counts of one recording seldom agree exactly. Four things are told apart:

* *jitter*: timestamps that scatter about the count (containers round to milliseconds, recorders ask a coarse clock).
  It is averaged out;
* *drift*: timestamps that move steadily against the count, as two clocks do. The sound has to be stretched to follow;
* a *step*: from one frame to the next the timestamps move, and stay there. Sound was lost, or comes twice: a new run;
* a *wrong rate*: timestamps that no clock's drift explains. That is refused.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mova_engine.errors import MovaError

# A move below this many seconds between two frames is jitter or drift.
STEP = 5e-3
# Steps whose sizes differ by fewer seconds are of one size.
SAME = 2e-3
# Frames on either side that say whether a move lasts.
WITNESSES = 9
# Sound is stretched where its timestamps depart by more than this many seconds from it as it is.
DRIFT = 5e-4
# Seconds between the points at which the rate of a drift may change.
KNOTS = 0.5
# Clocks differ by less: the least and the most that a second of samples may take.
SLOWEST = 0.05


@dataclass(frozen=True)
class PacketRun:
    """Frames `first` to `last` - 1, whose samples follow each other without a gap.

    The sample at nominal second `nominal[k]` of the run (its count / rate) sounds at `times[k]` seconds, with straight
    lines between: float64 [k], k >= 2, of which the first is the run's start and the last its end.
    """

    first: int
    last: int
    nominal: np.ndarray
    times: np.ndarray

    @property
    def stretched(self) -> bool:
        """Whether a second of samples lasts longer or shorter than a second."""
        return not np.allclose(np.diff(self.times), np.diff(self.nominal), rtol=0, atol=1e-9)


def find_runs(times: np.ndarray, lengths: np.ndarray) -> list[PacketRun]:
    """Divide frames, which start at `times` and last `lengths` seconds by their samples (float64 [n]), into runs.

    Raises MovaError, without a file's name, where the timestamps fit no clock.
    """
    ends = np.cumsum(lengths)
    borders = [0, *_steps(times - (ends - lengths)), len(times)]
    return [
        PacketRun(first, last, *_curve(times[first:last], lengths[first:last]))
        for first, last in itertools.pairwise(borders)
    ]


def displaced(runs: list[PacketRun]) -> Iterator[tuple[float, PacketRun]]:
    """Runs before which the timestamps step by so many seconds, and after which they return.

    What is lost or comes twice stays so. Of such a run, or of both its neighbours, the timestamps are wrong.
    """
    steps = [later.times[0] - earlier.times[-1] for earlier, later in itertools.pairwise(runs)]
    for run, (step, back) in zip(runs[1:], itertools.pairwise(steps), strict=False):
        if abs(step) > STEP and abs(step + back) < SAME:
            yield step, run


def _steps(offsets: np.ndarray) -> list[int]:
    """First frames of new runs. offsets [n]: by how much each frame is later than the samples before it say."""
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
        # The median of n values scatters by 1.25 / sqrt(n) of what they do.
        doubt = 6 * 1.25 * noise * np.sqrt(1 / len(before) + 1 / len(after))
        if abs(np.median(after) - np.median(before)) > max(STEP, doubt):
            borders.append(int(k))
    return sorted(borders)[1:-1]


def _curve(times: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nominal` and `times` of a run: the simplest curve from which its timestamps do not depart.

    First a constant delay, then a straight line where that is significant, then one with corners.
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
            # Each with timestamps of its own to either side.
            inner = np.quantile(starts[kept], np.linspace(0, 1, count)[1:-1])
            knots = np.unique(np.concatenate([[0.0], inner, [end]]))
            values = _corners(starts, offsets, kept, knots)
    slope = np.diff(values) / np.diff(knots)
    if np.abs(slope).max() > SLOWEST:
        found = 100 * slope[np.abs(slope).argmax()]
        raise MovaError(f"has sound whose timestamps do not fit its sample rate ({found:+.1f} %)")
    return knots, knots + values


def _agreeing(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points stand where their neighbours do: bool [n], all but single wrong timestamps."""
    if len(x) < 3:
        return np.ones(len(x), bool)
    half = len(x) // 2
    slope = np.median((y[half:] - y[: len(y) - half]) / (x[half:] - x[: len(x) - half]))
    level = y - slope * x
    apart = np.abs(level - np.median(_neighbours(level), axis=1))
    return apart <= max(4 * 1.4826 * np.median(apart), 1e-3)


def _line(x: np.ndarray, y: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, float]:
    """Constant and slope by least squares, and by how much the slope may be wrong."""
    x, y = x[kept], y[kept]
    if len(x) < 3 or np.ptp(x) == 0:
        return np.array([np.median(y), 0.0]), 0.0
    middle = x - x.mean()
    slope = (middle @ y) / (middle @ middle)
    rest = y - y.mean() - slope * middle
    freedom = len(x) - 2
    error = np.sqrt((rest @ rest) / freedom / (middle @ middle))
    # Five standard errors; of few points more, as Student's distribution has it.
    return np.array([y.mean() - slope * x.mean(), slope]), float(error) * (5 + 100 / freedom**2)


def _corners(x: np.ndarray, y: np.ndarray, kept: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Values at the knots of the broken line that fits best."""
    hats = np.stack([np.interp(x[kept], knots, row) for row in np.eye(len(knots))], axis=1)
    return np.linalg.lstsq(hats, y[kept], rcond=None)[0]


def _neighbours(values: np.ndarray) -> np.ndarray:
    """Each value among its neighbours, [n, WITNESSES]; the first and last stand for those that are missing."""
    return sliding_window_view(np.pad(values, WITNESSES // 2, mode="edge"), WITNESSES)


def _noise(offsets: np.ndarray) -> float:
    """Standard deviation of the jitter, of which a few steps make no more."""
    moves = np.diff(offsets)
    # Not the median of the deviations: most moves of a coarse clock may be the same. 1.28: the normal distribution's.
    return float(np.quantile(np.abs(moves - np.median(moves)), 0.8)) / 1.28 / np.sqrt(2)
