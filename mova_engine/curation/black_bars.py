"""Black bars around shots, to the pixel, from sampled pictures at their own size.

A line counts as lit where a tenth of it is brighter than black. What is lit in none of a shot's pictures is cut off
where it is a bar: alike on both sides, two hundredths of the picture at least, and with a sharp and straight edge,
right behind which a quarter of the line is bright. The edge of what is merely dark is neither: such a shot is
undecided, and takes the bars that the film has elsewhere if nothing in it is lit beyond them, or loses nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mova_engine.data.clip_edit import Crop
from mova_engine.scores.optional_opencv import opencv

Grey = NDArray[np.uint8]
# Levels of a full scale of 255 up to which a pixel counts as black: bars are 0, and what coding leaves of edges in
# them stays below. What is above BRIGHT is not nearly black.
BLACK, BRIGHT = 14, 28
# Shares of a line: what is lit, and how much of one of the first lines behind an edge is bright. Coding smears an edge
# over two lines.
LIT, SHARP = 0.1, 1 / 4
_BEHIND = 3
# Of a side's pixels: what both bars have together at least, and by how much they may differ.
LEAST, UNEQUAL = 0.02, 0.01
# A picture whose sides are within a hundredth of a shape has that shape.
NEARLY = 0.01
# Of an axis' pixels what is kept: [first, end).
Kept = tuple[int, int]
# Left, top, right, bottom.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class LitLines:
    """Of one picture: the share of each row [2, h] and of each column [2, w] that is not black, and that is bright; in
    255ths, uint8.
    """

    rows: NDArray[np.uint8]
    columns: NDArray[np.uint8]


def lit_lines(picture: Grey) -> LitLines:
    """Of a picture [h, w] of full scale. Raises MovaError without OpenCV."""
    cv2 = opencv("Finding black bars")
    masks = [cv2.threshold(picture, level, 255, cv2.THRESH_BINARY)[1] for level in (BLACK, BRIGHT)]
    rows, columns = (
        np.stack([cv2.reduce(mask, axis, cv2.REDUCE_AVG, dtype=cv2.CV_8U).ravel() for mask in masks]) for axis in (1, 0)
    )
    return LitLines(rows, columns)


def boxes_of_shots(shots: Sequence[Sequence[LitLines]], seconds: Sequence[float]) -> list[Box | None]:
    """What is kept of the pictures of each shot, of which these pictures were looked at; None for a shot of which there
    is none. seconds: how long each shot is: of a film's bars those of most seconds serve for undecided shots.
    """
    unions = [
        [np.max([getattr(each, side) for each in shot], 0) for side in ("columns", "rows")] for shot in shots if shot
    ]
    lengths = [length for shot, length in zip(shots, seconds, strict=True) if shot]
    kept = zip(*(_kept_by_all([union[axis] for union in unions], lengths) for axis in (0, 1)), strict=True)
    boxes = iter([(left, top, right, bottom) for (left, right), (top, bottom) in kept])
    return [next(boxes) if shot else None for shot in shots]


def _kept_by_all(shares: list[NDArray[np.uint8]], seconds: list[float]) -> list[Kept]:
    """What each shot keeps of one axis, of the shares of its lines that are lit."""
    found = [kept_lines(each) for each in shares]
    usual: Counter[Kept] = Counter()
    for kept, each, length in zip(found, shares, seconds, strict=True):
        if kept is not None and kept != (0, each.shape[1]):
            usual[kept] += length  # pyright: ignore[reportArgumentType]
    film = min(usual, key=lambda kept: (-usual[kept], kept), default=None)
    return [
        kept if kept is not None else film if film and _is_within(each, film) else (0, each.shape[1])
        for kept, each in zip(found, shares, strict=True)
    ]


def kept_lines(shares: NDArray[np.uint8]) -> Kept | None:
    """The lines [first, end) between the bars of one axis, even numbers; all where there is no bar, None where that
    cannot be told. shares uint8 [2, n]: of each line what is lit and what is bright, the largest of all pictures.
    """
    count = shares.shape[1]
    lit = np.flatnonzero(shares[0] > 255 * LIT)
    if not len(lit):
        return None
    first, end = int(lit[0]), int(lit[-1]) + 1
    bars = (first, count - end)
    edges = (shares[1, first : first + _BEHIND], shares[1, max(0, end - _BEHIND) : end])
    if any(bar > 1 and edge.max() < 255 * SHARP for bar, edge in zip(bars, edges, strict=True)):
        return None
    if sum(bars) < LEAST * count or abs(bars[0] - bars[1]) > max(2, UNEQUAL * count):
        return 0, count
    return first + first % 2, end - end % 2


def _is_within(shares: NDArray[np.uint8], kept: Kept) -> bool:
    lit = np.flatnonzero(shares[0] > 255 * LIT)
    return not len(lit) or (kept[0] - 2 <= lit[0] and lit[-1] < kept[1] + 2)


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def upright_box(box: Box, size: tuple[int, int], orientation: int, pixel_aspect: float) -> Box:
    """A box of stored pictures of this height and width, as it lies in upright ones with square pixels. orientation:
    EXIF's number. pixel_aspect: width / height of a stored pixel.
    """
    height, width = size[0], max(1, round(size[1] * pixel_aspect))
    left, top, right, bottom = box
    left, right = (min(width, round(side * pixel_aspect)) for side in (left, right))
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def shaped(box: Box, aspect: float) -> Box:
    """The largest centred part of a box whose width is `aspect` times its height, with even sides; the box itself where
    it nearly has that shape.
    """
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if abs(width / height / aspect - 1) <= NEARLY:
        return box
    wanted_width, wanted_height = min(width, 2 * round(height * aspect / 2)), min(height, 2 * round(width / aspect / 2))
    left, top = left + (width - wanted_width) // 4 * 2, top + (height - wanted_height) // 4 * 2
    return left, top, left + wanted_width, top + wanted_height


def as_crop(box: Box, size: tuple[int, int]) -> Crop | None:
    """A box of an upright picture of this height and width as a clip's crop; None where it is the whole picture."""
    left, top, right, bottom = box
    return None if box == (0, 0, size[1], size[0]) else (left, top, right - left, bottom - top)
