"""Which of a clip's frames ffmpeg and other readers take at another frame rate, by index alone."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def fps_filter(times: Sequence[Fraction], rate: Fraction) -> list[int]:
    """The frames that ffmpeg's `fps` filter puts out at `rate`: slot k shows the last frame whose time rounds to <= k.

    times: presentation times in seconds, rising, the first at the clip's start. Halves round away from zero; slots end
    where the last frame's time rounds to, as for a source that does not say how long that frame lasts.
    """
    slots = [math.floor(time * rate + Fraction(1, 2)) for time in times]
    return [int(i) for i in np.searchsorted(slots, np.arange(slots[-1]), side="right") - 1]


def constant_rate(times: Sequence[Fraction], rate: Fraction, duration: Fraction) -> list[int]:
    """The frames that the ffmpeg program (5.1) writes with `-r RATE` to a format of constant rate.

    A frame fills more slots where it comes half a slot late, and none where its end comes 0.6 slots before the next
    free one. duration: of a source frame in seconds. The end repeats the last frame as often as the median of the last
    three gaps was filled. Compared with the program for rates from 10 to 120.
    """
    slots = duration * rate
    lasts = min(1, round(slots)) or slots  # whole slots, at most one
    chosen: list[int] = []
    filled = [0, 0, 0]
    for i, time in enumerate(times):
        late = time * rate - len(chosen)
        after = late + lasts
        if late < 0 < after:
            late = Fraction(0)
        repeats, previous = 1, 0
        if after < Fraction(-6, 10):
            repeats = 0
        elif after > Fraction(11, 10):
            repeats = round(after)
            if late > Fraction(11, 10):
                previous = math.floor(late - Fraction(1, 2))
        filled = [previous, *filled[:2]]
        chosen += [max(0, i - 1)] * previous + [i] * (repeats - previous)
    return chosen + [len(times) - 1] * sorted(filled)[1]


def by_duration(count: int, source_rate: float, rate: float, frames: int) -> list[int]:
    """`count` frames at k / rate seconds of a clip of `frames` frames: the reading of MOVA's fall-back decoder."""
    times = np.clip(np.arange(count) / rate, 0, frames / source_rate - 1e-6)
    return np.clip((times * source_rate).astype(np.int64), 0, frames - 1).tolist()


def padded(indices: Sequence[int], count: int) -> list[int]:
    """The first `count` frames; the last one is repeated where there are fewer."""
    return [*indices[:count], *[indices[-1]] * (count - len(indices))]
