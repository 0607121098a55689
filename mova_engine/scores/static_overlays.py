"""What is laid over a film and stays where it is, logos and watermarks without a word among them.

An edge of the film moves with it, so over time its gradient averages out; an edge of what is laid over it is there in
every picture (after Dekel, Rubinstein, Liu and Freeman, "On the Effectiveness of Visible Watermarks", 2017, who find a
watermark as the median of many pictures' gradients). It counts only where the film around it changes, since where the
film itself stands still nothing tells one from the other.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, find_objects, label

from mova_engine.errors import MovaError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
# Pictures that are looked at, the least of them, and pixels of their shorter side.
PICTURES, LEAST_PICTURES, ROWS = 16, 8, 270
# A lasting edge has a median gradient of so many grey levels a pixel, and in so large a share of the pictures one that
# is half as strong at least, of that direction.
_STRONG, _SHARE, _COSINE = 6.0, 0.9, 0.9
# Edges so many pixels apart belong to one thing; one of fewer edges' pixels is none, nor is one that takes more of the
# picture's height or width.
_REACH, _LEAST_EDGES, _LARGEST = 4, 20, 0.5
# The film changes at a pixel whose grey levels differ by this from their mean over time. Of a frame of so many pixels
# around a thing it has to in this share of its four sides together, and in this of each.
_CHANGE, _FRAME, _MOST, _LEAST = 8.0, 6, 0.7, 0.4
# Share of the picture that has to change for anything to be told.
_LEAST_MOVING = 0.2


@dataclass(frozen=True)
class StaticOverlays:
    """area: share of the picture that lies in the boxes; boxes: (left, top, right, bottom) of each thing in shares of
    the picture's sides, from the top left.
    """

    area: float
    boxes: tuple[tuple[float, float, float, float], ...]


def static_overlays(pictures: Pixels) -> StaticOverlays:
    """What lasts in pictures uint8 [n, h, w, 3], RGB, spread over a clip.

    Raises MovaError for fewer than LEAST_PICTURES, and where too little of the film changes.
    """
    if len(pictures) < LEAST_PICTURES:
        raise MovaError(f"what lasts in a film is told from {LEAST_PICTURES} pictures at least, got {len(pictures)}")
    grey = pictures.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    changes = grey.std(axis=0) >= _CHANGE
    if changes.mean() < _LEAST_MOVING:
        raise MovaError("too little of the picture changes to tell what is laid over it")
    edges = np.pad(_lasting(np.diff(grey, axis=2)[:, :-1], np.diff(grey, axis=1)[:, :, :-1]), ((0, 1), (0, 1)))
    things: Any = label(binary_dilation(edges, iterations=_REACH // 2), np.ones((3, 3)))
    height, width = edges.shape
    boxes = [
        (columns.start / width, rows.start / height, columns.stop / width, rows.stop / height)
        for rows, columns in (_tight(edges, place) for place in find_objects(things[0]))
        if edges[rows, columns].sum() >= _LEAST_EDGES
        and rows.stop - rows.start <= _LARGEST * height
        and columns.stop - columns.start <= _LARGEST * width
        and _changes_around(changes, rows, columns)
    ]
    covered = np.zeros_like(edges)
    for left, top, right, bottom in boxes:
        covered[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return StaticOverlays(float(covered.mean()), tuple(sorted(boxes, key=lambda box: (box[1], box[0]))))


def _lasting(across: Floats, down: Floats) -> NDArray[np.bool_]:
    """Pixels with a gradient [n, h, w] that is strong and alike in nearly all pictures."""
    middle_across, middle_down = np.median(across, axis=0), np.median(down, axis=0)
    size = np.hypot(middle_across, middle_down)
    along = across * middle_across + down * middle_down
    alike = (along >= _COSINE * size * np.hypot(across, down)) & (along >= 0.5 * size**2)
    return (size >= _STRONG) & (alike.mean(axis=0) >= _SHARE)


def _tight(edges: NDArray[np.bool_], place: tuple[slice, slice]) -> tuple[slice, slice]:
    """The rows and columns of the edges in a place."""
    inside = edges[place]
    sides = []
    for axis, part in enumerate(place):
        used = np.flatnonzero(inside.any(axis=1 - axis))
        sides.append(slice(part.start + int(used[0]), part.start + int(used[-1]) + 1))
    return sides[0], sides[1]


def _changes_around(changes: NDArray[np.bool_], rows: slice, columns: slice) -> bool:
    """Whether the film changes on each side of a thing that it has a place on."""
    wide = slice(max(0, columns.start - _FRAME), columns.stop + _FRAME)
    # The pixel next to an edge is the edge's own.
    sides = (
        changes[max(0, rows.start - _FRAME) : max(0, rows.start - 1), wide],
        changes[rows.stop + 1 : rows.stop + _FRAME, wide],
        changes[rows, max(0, columns.start - _FRAME) : max(0, columns.start - 1)],
        changes[rows, columns.stop + 1 : columns.stop + _FRAME],
    )
    shown = [float(side.mean()) for side in sides if side.size]
    return bool(shown) and min(shown) >= _LEAST and float(np.mean(shown)) >= _MOST
