"""Where the shots of a film begin: hard cuts by the change of content between neighbouring pictures, and black gaps.

The change is PySceneDetect's (Castellano, BSD-3-Clause; its `content_val`): the mean absolute difference of hue (0 to
179), saturation and value (0 to 255) by pixel, averaged over the three. A cut is a change that stands out from those
around it, which pans and shakes do not, and after which the old scene does not come back, as it does after a flash.
Dissolves change no single picture much: mova_engine.scores.shot_network finds them.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
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
# Hue and saturation of dark pixels are noise: they count less below a value of DIM. Pictures below BLACK are black
# where one of them is below DEEP: a dark scene only comes near it.
DIM, BLACK, DEEP = 64, 24, 8
# PySceneDetect's ContentDetector: the change that is a cut, the pictures of a shot at least, the columns compared.
PUBLISHED_LEAST, PUBLISHED_SHORTEST, PUBLISHED_COLUMNS = 27.0, 15, 256


def shots(pictures: Iterable[Pixels], fps: float) -> list[Shot]:
    """The shots [(first, end)] of pictures uint8 [h, w, 3], RGB, of any size: end is the first picture of the next one.

    Every picture is in one shot; black between two scenes is divided in its middle. Raises MovaError without OpenCV.
    """
    finder = ShotFinder(fps)
    for picture in pictures:
        finder.add(colours_of_one(picture))
    return shots_between(sorted([*finder.hard_cuts(), *finder.black_gaps()]), finder.count)


def shots_between(transitions: Iterable[Transition], count: int) -> list[Shot]:
    """The shots [(first, end)] of `count` pictures; a transition is divided in its middle."""
    starts = [(first + end + 1) // 2 for first, end in transitions]
    starts = [0, *(start for start in starts if 0 < start < count)]
    return list(zip(starts, [*starts[1:], count], strict=True)) if count else []


def colours_of(pictures: Iterable[Pixels]) -> Pixels:
    """Hue, saturation and value [f, h, w, 3] of pictures [h, w, 3], RGB, made smaller to ROWS rows."""
    found = [colours_of_one(picture) for picture in pictures]
    return np.stack(found) if found else np.zeros((0, ROWS, 1, 3), np.uint8)


def colours_of_one(picture: Pixels) -> Pixels:
    """Hue, saturation and value of one picture [h, w, 3], RGB, as `colours_of` has them."""
    found = _colours(picture, rows=ROWS)
    found[..., :2] = found[..., :2] * np.minimum(found[..., 2:], DIM).astype(np.uint16) // DIM
    return found


def hard_cuts(colours: Pixels, fps: float) -> list[Transition]:
    """The hard cuts in pictures that `colours_of` made, but for those at the edges of black."""
    return _finder(colours, fps).hard_cuts()


def black_gaps(colours: Pixels, fps: float) -> list[Transition]:
    """Black pictures between two scenes, in pictures that `colours_of` made. The same scene after it makes no gap."""
    return _finder(colours, fps).black_gaps()


def _finder(colours: Pixels, fps: float) -> "ShotFinder":
    finder = ShotFinder(fps)
    for each in colours:
        finder.add(each)
    return finder


class ShotFinder:
    """Finds hard cuts and black gaps in pictures that come one after the other, of which it keeps half a second."""

    def __init__(self, fps: float) -> None:
        self._near = _near(fps)
        self._kept: deque[Pixels] = deque(maxlen=2 * self._near + 2)
        self._changes: list[float] = []
        self._waiting: deque[int] = deque()  # numbers of changes that may be cuts
        self._found: list[int] = []
        # Black so far: [first, end) of each interval, and of those that may be gaps what came before them.
        self._black: list[tuple[int, int]] = []
        self._opening: tuple[int, Pixels, Pixels, Pixels] | None = None
        self._closing: deque[tuple[int, int, Pixels, Pixels, Pixels]] = deque()
        self._gaps: list[Transition] = []
        self._was_black, self._darkest = False, math.inf
        self.count = 0

    def add(self, colours: Pixels) -> bool:
        """Look at the next picture [h, w, 3], as `colours_of` makes it. Returns whether it may be a shot's first."""
        change = _change(self._kept[-1], colours) if self.count else 0.0
        value = float(colours[..., 2].mean())
        is_black = value < BLACK
        if self.count:
            self._changes.append(change)
            if change >= LEAST:
                self._waiting.append(self.count - 1)
            if is_black and not self._was_black:
                before = self._at(max(0, self.count - self._near))
                self._opening = (self.count, before, self._kept[-1], colours)
            elif self._was_black and not is_black and self._opening is not None:
                first, before, last, opening = self._opening
                if self._darkest < DEEP:
                    self._black.append((first, self.count))
                    self._closing.append((first, self.count, before, last, opening))
                self._opening = None
        self._darkest = min(value, self._darkest) if is_black else math.inf
        self._was_black = is_black
        self._kept.append(colours)
        self.count += 1
        while self._waiting and self._waiting[0] + self._near + 1 < self.count:
            self._decide_cut()
        while self._closing and self._closing[0][1] - 1 + self._near < self.count:
            self._decide_gap()
        return change >= LEAST

    def hard_cuts(self) -> list[Transition]:
        """The hard cuts of all pictures so far, but for those at the edges of black; no picture may be added then."""
        while self._waiting:
            self._decide_cut()
        near = self._near
        return [
            (cut, cut)
            for cut in self._found
            if not any(first - near <= cut <= end + near for first, end in self._black)
        ]

    def black_gaps(self) -> list[Transition]:
        """Black pictures between two scenes; no picture may be added then."""
        while self._closing:
            self._decide_gap()
        return self._gaps

    def _at(self, i: int) -> Pixels:
        """Picture i, one of those that are kept."""
        return self._kept[i - self.count + len(self._kept)]

    def _decide_cut(self) -> None:
        i, near = self._waiting.popleft(), self._near
        around = np.sort(np.delete(self._changes[max(0, i - near) : i + near + 1], min(i, near)))
        usual = around[-2] if len(around) == 2 * near else max(around, default=0.0)
        if self._changes[i] >= RATIO * usual:
            first = max(0, i - near)
            pictures = [self._at(j) for j in range(first, min(i + near + 2, self.count))]
            if not _comes_back(pictures, i + 1 - first, near):
                self._found.append(i + 1)

    def _decide_gap(self) -> None:
        first, end, before, last, opening = self._closing.popleft()
        after = self._at(min(self.count - 1, end - 1 + self._near))
        depth = _change(before, opening)
        # A fade takes its time; what goes black at once and is soon back is a flash, over which the scene may move.
        sudden = end - first <= self._near and _change(last, opening) >= depth / 2
        if _change(before, after) >= max(LEAST, depth / 2 if sudden else 0.0):
            self._gaps.append((first, end))


def comes_back(colours: Pixels, cut: int, fps: float) -> bool:
    """Whether one of the pictures soon after `cut`, the first of a shot, is like the last before it, or one soon before
    it like the first of the shot: they differ by less than half of the change.
    """
    return _comes_back(colours, cut, _near(fps))


def _comes_back(colours: Sequence[Pixels] | Pixels, cut: int, near: int) -> bool:
    before, after = colours[cut - 1], colours[cut]
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
