"""Where the shots of a film begin: hard cuts by the change of content between neighbouring pictures, and black gaps.

The change is PySceneDetect's (Castellano, BSD-3-Clause; its `content_val`): the mean absolute difference of hue (0 to
179), saturation and value (0 to 255) by pixel, averaged over the three. A cut is a change that stands out from those
around it, which pans and shakes do not, and after which the old scene does not come back, as it does after a flash.
Dissolves change no single picture much: mova_engine.scores.shot_network finds them.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mova_engine.scores.optional_opencv import opencv

Pixels = NDArray[np.uint8]
Shot = tuple[int, int]
# Pictures [first, end) that belong to no single shot; at a hard cut there are none, and both are the new shot's first.
Transition = tuple[int, int]

# Rows of the pictures that are compared, at most.
ROWS = 72
# A cut changes the content by LEAST, and by RATIO times the second largest of the other changes within NEAR_SECONDS:
# one of those may be a cut or a flash too, and drawn animation may change every fourth picture only. At the film's ends
# it is the largest.
LEAST, RATIO = 15.0, 1.6
# A scene that is back within this time was interrupted, not cut.
NEAR_SECONDS = 0.25
# Hue and saturation of dark pixels are noise: they count less below a value of DIM. Pictures below BLACK are black.
DIM, BLACK = 64, 24
# PySceneDetect's ContentDetector: the change that is a cut, the pictures of a shot at least, the columns compared.
PUBLISHED_LEAST, PUBLISHED_SHORTEST, PUBLISHED_COLUMNS = 27.0, 15, 256


def shots(pictures: Iterable[Pixels], fps: float) -> list[Shot]:
    """The shots [(first, end)] of pictures uint8 [h, w, 3], RGB, of any size: end is the first picture of the next one.

    Every picture is in one shot; black between two scenes is divided in its middle. Raises MovaError without OpenCV.
    """
    colours = colours_of(pictures)
    return shots_between(sorted([*hard_cuts(colours, fps), *black_gaps(colours, fps)]), len(colours))


def shots_between(transitions: Iterable[Transition], count: int) -> list[Shot]:
    """The shots [(first, end)] of `count` pictures; a transition is divided in its middle."""
    starts = [(first + end + 1) // 2 for first, end in transitions]
    starts = [0, *(start for start in starts if 0 < start < count)]
    return list(zip(starts, [*starts[1:], count], strict=True)) if count else []


def colours_of(pictures: Iterable[Pixels]) -> Pixels:
    """Hue, saturation and value [f, h, w, 3] of pictures [h, w, 3], RGB, made smaller to ROWS rows."""
    found = [_colours(picture, rows=ROWS) for picture in pictures]
    for each in found:
        each[..., :2] = each[..., :2] * np.minimum(each[..., 2:], DIM).astype(np.uint16) // DIM
    return np.stack(found) if found else np.zeros((0, ROWS, 1, 3), np.uint8)


def hard_cuts(colours: Pixels, fps: float) -> list[Transition]:
    """The hard cuts in pictures that `colours_of` made, but for those at the edges of black."""
    changes = np.array([_change(colours[i], colours[i + 1]) for i in range(len(colours) - 1)])
    gaps, near = _black(colours), _near(fps)
    found = []
    for i in np.flatnonzero(changes >= LEAST).tolist():
        if any(first - near <= i + 1 <= end + near for first, end in gaps):
            continue
        around = np.sort(np.delete(changes[max(0, i - near) : i + near + 1], min(i, near)))
        usual = around[-2] if len(around) == 2 * near else max(around, default=0.0)
        if changes[i] >= RATIO * usual and not comes_back(colours, i + 1, fps):
            found.append((i + 1, i + 1))
    return found


def black_gaps(colours: Pixels, fps: float) -> list[Transition]:
    """Black pictures between two scenes, in pictures that `colours_of` made. The same scene after it makes no gap."""
    near, last = _near(fps), len(colours) - 1
    found = []
    for first, end in _black(colours):
        before, after = colours[max(0, first - near)], colours[min(last, end - 1 + near)]
        depth = _change(before, colours[first])
        # A fade takes its time; what goes black at once and is soon back is a flash, over which the scene may move.
        sudden = end - first <= near and _change(colours[first - 1], colours[first]) >= depth / 2
        if _change(before, after) >= (depth / 2 if sudden else LEAST):
            found.append((first, end))
    return found


def comes_back(colours: Pixels, cut: int, fps: float) -> bool:
    """Whether one of the pictures soon after `cut`, the first of a shot, is like the last before it, or one soon before
    it like the first of the shot: they differ by less than half of the change.
    """
    before, after, near = colours[cut - 1], colours[cut], _near(fps)
    like = _change(before, after) / 2
    later = colours[cut + 1 : cut + 1 + near]
    earlier = colours[max(0, cut - 1 - near) : cut - 1]
    return any(_change(before, each) < like for each in later) or any(_change(each, after) < like for each in earlier)


def published_shots(pictures: Iterable[Pixels]) -> list[Shot]:
    """The shots by PySceneDetect's ContentDetector with its defaults, which MOVA's evaluation takes for faces.

    Changes of 27 and more are cuts; of cuts that follow within 15 pictures after the first one, the last is kept.
    """
    above: list[bool] = []
    before = None
    for picture in pictures:
        now = _colours(picture, columns=PUBLISHED_COLUMNS)
        above.append(before is not None and _change(before, now) >= PUBLISHED_LEAST)
        before = now
    return shots_between([(cut, cut) for cut in _merged(above)], len(above))


def _merged(above: Iterable[bool]) -> list[int]:
    """Cuts at least PUBLISHED_SHORTEST pictures apart, by PySceneDetect's rule of merging."""
    found: list[int] = []
    last, started = 0, None  # the last change that is one; where merging began
    for i, change in enumerate(above):
        apart = i - last >= PUBLISHED_SHORTEST
        last = i if change else last
        if started is not None:
            if apart and not change and last - started >= PUBLISHED_SHORTEST:
                found.append(last)
                started = None
        elif change and apart:
            found.append(i)
        elif change and found:
            started = i
    return found


def _near(fps: float) -> int:
    return max(1, round(NEAR_SECONDS * fps))


def _black(colours: Pixels) -> list[tuple[int, int]]:
    """Intervals [(first, end)] of black pictures with others before and after them."""
    black = colours[..., 2].mean((1, 2)) < BLACK
    edges = (np.flatnonzero(black[1:] != black[:-1]) + 1).tolist()
    return [(first, end) for first, end in itertools.pairwise(edges) if black[first]]


def _change(before: Pixels, now: Pixels) -> float:
    """The mean absolute difference of two pictures [h, w, 3]."""
    cv2 = opencv("Finding shots")
    total: Any = cv2.norm(before, now, cv2.NORM_L1)
    return float(total) / before.size


def _colours(picture: Pixels, rows: int = 0, columns: int = 0) -> Pixels:
    """Hue, saturation and value of a picture [h, w, 3], RGB, made smaller to so many rows or columns."""
    cv2 = opencv("Finding shots")
    height, width = picture.shape[:2]
    scale = rows / height if rows else columns / width
    if scale < 1:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if rows else cv2.INTER_LINEAR)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2HSV))
