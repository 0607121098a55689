"""How fast a film moves: the mean length of optical flow, in heights of the picture a second, and when nothing moves.

Flow by dense inverse search (Kroeger et al. 2016, arXiv 1603.03590; OpenCV's), which makes up motion where a flat
surface has nothing but noise: it counts only where the picture changes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.scores.optional_opencv import opencv

Pixels = NDArray[np.uint8]
# The rate at which pictures are compared, at most: a faster film repeats its motion, drawn animation its pictures.
RATE = 12.0
# Motion counts where grey levels, smoothed, change by _LEAST_CHANGE on average around a place, and where moving the one
# picture along the flow takes away a third of the change at least.
_LEAST_CHANGE, _EXPLAINED = 1.5, 0.3
_SMOOTH, _AROUND = (5, 5), (9, 9)
# Nothing moves where less than this share of the picture is faster than this, in heights a second.
STILL_SHARE, STILL_SPEED = 0.002, 0.02


def flow_speeds(before: Pixels, after: Pixels, fps: float) -> NDArray[np.float32]:
    """Speed [h, w] of each place, in heights of the picture a second, between pictures uint8 [h, w], grey, which follow
    each other at `fps`; 0 where the picture does not change or no motion explains it. Raises MovaError without OpenCV.
    """
    cv2 = opencv("Measuring motion")
    search: Any = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    # Half the size is fine enough: 1 ms for a picture of 144 x 256, within 2 % for pans of half a pixel and more.
    search.setFinestScale(1)
    search.setVariationalRefinementIterations(0)
    flow = search.calc(np.ascontiguousarray(before), np.ascontiguousarray(after), None)
    first, second = (cv2.blur(picture.astype(np.float32), _SMOOTH) for picture in (before, after))
    rows, columns = np.indices(before.shape, np.float32)
    moved = cv2.remap(second, columns + flow[..., 0], rows + flow[..., 1], cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
    change, rest = (cv2.blur(cv2.absdiff(first, other), _AROUND) for other in (second, moved))
    counts = (change >= _LEAST_CHANGE) & (rest <= (1 - _EXPLAINED) * change)
    # Of two numbers the sum of squares is np.linalg.norm's, which takes four times as long for it.
    speed = np.sqrt(flow[..., 0] ** 2 + flow[..., 1] ** 2) * (fps / before.shape[0])
    return np.where(counts, speed, 0).astype(np.float32)


def motion_and_stillness(
    pictures: Pixels, fps: float, shots: Sequence[int] | None = None
) -> tuple[float, float] | None:
    """Of pictures uint8 [f, h, w, 3], RGB, at `fps`: the mean speed over places and time, in heights a second, and the
    share of time in which nothing moves; None where there are no two pictures of a shot.

    shots [f]: the number of each picture's shot; nothing is compared across them.
    """
    cv2 = opencv("Measuring motion")
    greys = [np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) for picture in pictures]
    found = [
        motion_of_pair(greys[i - 1], greys[i], fps)
        for i in range(1, len(greys))
        if shots is None or shots[i - 1] == shots[i]
    ]
    return mean_motion(found)


def motion_of_pair(before: Pixels, after: Pixels, fps: float) -> tuple[float, bool]:
    """The mean speed of two pictures as `flow_speeds` takes them, and whether nothing moves between them."""
    speed = flow_speeds(before, after, fps)
    return float(speed.mean()), float((speed >= STILL_SPEED).mean()) < STILL_SHARE


def mean_motion(pairs: Sequence[tuple[float, bool]]) -> tuple[float, float] | None:
    """The mean speed, and the share of pairs in which nothing moves; None without pairs."""
    if not pairs:
        return None
    speeds, still = zip(*pairs, strict=True)
    return float(np.mean(speeds)), float(np.mean(still))
