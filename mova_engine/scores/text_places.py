"""What text does to a film: how much of it is covered, how long text stands at one place, and whether it is laid over.

Text laid over a film (subtitles, logos, watermarks) stays where it is while the picture behind it changes; text of the
scene moves with the scene, or both stand still.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mova_engine.scores.text_reader import TextBox

Pixels = NDArray[np.uint8]
# Two lines are at one place where their heights overlap by _ROWS of the greater one, and their widths by _COLUMNS of
# the lesser: subtitles change their words and their length.
_ROWS, _COLUMNS = 0.7, 0.5
# A place is a persistent one from so many samples in a row on.
LEAST_SAMPLES = 3
# The picture around a line changes where grey levels differ by this on average; it is as wide as the line is high.
_CHANGE = 4.0
# Cells in which areas are counted.
_GRID = (180, 320)


@dataclass(frozen=True)
class TextNumbers:
    """area: mean share of the picture that text covers; share: of the samples, those with text; persistence: the
    largest share of samples in which text stands at one place; overlay: of the samples, those with text that is laid
    over the film.
    """

    area: float
    share: float
    persistence: float
    overlay: float


def text_numbers(boxes: Sequence[Sequence[TextBox]], small: Pixels) -> TextNumbers:
    """What text does to a film. boxes: the lines of each sample; small: the samples uint8 [n, h, w, 3], in any size."""
    count = len(boxes)
    places = text_places(boxes)
    overlaid = [place for place in places if len(place) >= LEAST_SAMPLES and _changes_behind(place, boxes, small)]
    return TextNumbers(
        float(np.mean([_covered(lines) for lines in boxes])),
        sum(map(bool, boxes)) / count,
        max((len(place) for place in places), default=0) / count,
        len({sample for place in overlaid for sample in place}) / count,
    )


def text_places(boxes: Sequence[Sequence[TextBox]]) -> list[dict[int, int]]:
    """Places at which text stands in samples that follow each other: of each, {sample: number of its line there}."""
    ended: list[dict[int, int]] = []
    open_places: list[dict[int, int]] = []
    for sample, lines in enumerate(boxes):
        free = dict(enumerate(lines))
        still: list[dict[int, int]] = []
        for place in open_places:
            before = boxes[sample - 1][place[sample - 1]]
            line = next((i for i, box in free.items() if _same_place(before, box)), None)
            if line is None:
                ended.append(place)
            else:
                del free[line]
                place[sample] = line
                still.append(place)
        open_places = [*still, *({sample: i} for i in free)]
    return [*ended, *open_places]


def _same_place(one: TextBox, other: TextBox) -> bool:
    rows = min(one.bottom, other.bottom) - max(one.top, other.top)
    columns = min(one.right, other.right) - max(one.left, other.left)
    return rows >= _ROWS * max(one.bottom - one.top, other.bottom - other.top) and columns >= _COLUMNS * min(
        one.right - one.left, other.right - other.left
    )


def _covered(lines: Sequence[TextBox]) -> float:
    """The share of the picture that lies in one of the boxes."""
    rows, columns = ((np.arange(size) + 0.5) / size for size in _GRID)
    inside = np.zeros(_GRID, bool)
    for box in lines:
        inside |= ((rows >= box.top) & (rows < box.bottom))[:, None] & ((columns >= box.left) & (columns < box.right))
    return float(inside.mean())


def _changes_behind(place: dict[int, int], boxes: Sequence[Sequence[TextBox]], small: Pixels) -> bool:
    """Whether the picture around a place changes from one of its samples to the next, on average."""
    grey = small.astype(np.float32).mean(-1)
    height, width = grey.shape[1:]
    changes = []
    for sample in sorted(place)[1:]:
        box = boxes[sample][place[sample]]
        margin = box.bottom - box.top
        wide = margin * height / width
        rows = slice(max(0, round((box.top - margin) * height)), round((box.bottom + margin) * height))
        columns = slice(max(0, round((box.left - wide) * width)), round((box.right + wide) * width))
        around = np.zeros((height, width), bool)
        around[rows, columns] = True
        rows, columns = (
            slice(round(low * size), round(high * size))
            for low, high, size in ((box.top, box.bottom, height), (box.left, box.right, width))
        )
        around[rows, columns] = False
        if around.any():
            changes.append(float(np.abs(grey[sample] - grey[sample - 1])[around].mean()))
    return bool(changes) and float(np.mean(changes)) >= _CHANGE
