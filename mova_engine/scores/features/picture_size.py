"""Pictures at another size, with the rounding of the libraries whose numbers published scores rest on.

8-bit bilinear is OpenCV's INTER_LINEAR: weights of 11 bits, no low-pass filter when a picture shrinks. Bicubic and
smooth bilinear are PyTorch's own with antialiasing, on 8-bit pictures (rounded) or on floats, which torchvision calls.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional

from mova_engine.errors import MovaError

# OpenCV's weights are integers of this many bits; the first pass drops four bits before the second multiplies.
_BITS = 11
_DROPPED = 4


def resize_bilinear_u8(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """An 8-bit picture [h, w] or [h, w, c] at [height, width], as OpenCV's resize with INTER_LINEAR.

    A pixel is a sum of its four nearest ones, whatever the scale. A picture of exactly twice the size is averaged over
    2 x 2 pixels. MovaError for another dtype than uint8 or an empty size.
    """
    _check(picture, height, width)
    rows, columns = picture.shape[:2]
    if (rows, columns) == (2 * height, 2 * width):
        summed = picture.reshape(height, 2, width, 2, *picture.shape[2:]).sum((1, 3), dtype=np.int32)
        return ((summed + 2) >> 2).astype(np.uint8)
    return _resample(picture, height, width, rows / height, columns / width)


def scale_bilinear_u8(picture: np.ndarray, factor: float) -> np.ndarray:
    """An 8-bit picture scaled by `factor` in both directions, as OpenCV's resize with fx = fy = factor.

    Sides are rounded, halves to even; the step between sampled places is 1 / factor whatever was rounded.
    """
    height, width = (round(side * factor) for side in picture.shape[:2])
    _check(picture, height, width)
    if factor == 0.5 and picture.shape[:2] == (2 * height, 2 * width):
        return resize_bilinear_u8(picture, height, width)
    return _resample(picture, height, width, 1 / factor, 1 / factor)


def _check(picture: np.ndarray, height: int, width: int) -> None:
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise MovaError(f"expected an 8-bit picture [h, w, channels], got {picture.dtype} {list(picture.shape)}")
    rows, columns = picture.shape[:2]
    if min(rows, columns, height, width) < 1:
        raise MovaError(f"cannot resize a picture of {rows} x {columns} to {height} x {width}")


def _resample(picture: np.ndarray, height: int, width: int, down: float, along: float) -> np.ndarray:
    """`picture` sampled at steps of `down` rows and `along` columns."""
    rows, columns = picture.shape[:2]
    if (rows, columns) == (height, width):
        return picture.copy()
    x0, x1, a0, a1 = _neighbours(columns, width, along)
    y0, y1, b0, b1 = _neighbours(rows, height, down)
    # Beyond an edge both columns are the outermost and one weight is whole; rows keep their two weights, each of which
    # is rounded down on its own.
    outside = x0 == x1
    a0[outside], a1[outside] = 1 << _BITS, 0
    # Rows of numbers, a column's channels side by side: one table of indices and weights serves all rows.
    channels = picture.shape[2] if picture.ndim == 3 else 1
    left, right = ((x[:, None] * channels + np.arange(channels)).ravel() for x in (x0, x1))
    used, where = np.unique(np.concatenate((y0, y1)), return_inverse=True)  # a picture that shrinks skips rows
    source = picture.reshape(rows, columns * channels)[used]
    across = _weighted(source, left, np.repeat(a0, channels), 1)
    across += _weighted(source, right, np.repeat(a1, channels), 1)
    across >>= _DROPPED
    made = _weighted(across, where[:height], b0[:, None], 0)
    made >>= 16
    lower = _weighted(across, where[height:], b1[:, None], 0)
    lower >>= 16
    made += lower
    made += 2
    made >>= 2
    return made.clip(0, 255, out=made).astype(np.uint8).reshape(height, width, *picture.shape[2:])


def _weighted(source: np.ndarray, chosen: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Chosen rows (axis 0) or columns (1) of numbers [n, m], times their weights: int32."""
    taken = np.take(source, chosen, axis).astype(np.int32)
    taken *= weights
    return taken


def _neighbours(before: int, after: int, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each new position: the two old ones and their integer weights."""
    at = ((np.arange(after) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = at - first.astype(np.float32)
    one = np.float32(1 << _BITS)
    left = np.rint((np.float32(1) - part) * one).astype(np.int32)
    right = np.rint(part * one).astype(np.int32)
    return first.clip(0, before - 1), (first + 1).clip(0, before - 1), left, right


def resize(pictures: Tensor, size: Sequence[int], mode: Literal["bilinear", "bicubic"]) -> Tensor:
    """Pictures [..., c, h, w] at size (height, width), low-pass filtered; uint8 stays uint8, rounded and clamped.

    Float pictures are neither rounded nor clamped: bicubic overshoots.
    """
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    made = functional.interpolate(flat, size=tuple(size), mode=mode, antialias=True, align_corners=False)
    return made.reshape(*pictures.shape[:-2], *made.shape[-2:])


def resize_shorter_side(pictures: Tensor, size: int, mode: Literal["bilinear", "bicubic"] = "bicubic") -> Tensor:
    """Pictures [..., c, h, w] with the shorter side at `size`; the longer side is truncated to an integer."""
    height, width = pictures.shape[-2:]
    shorter, longer = min(height, width), max(height, width)
    other = int(size * longer / shorter)
    return resize(pictures, (size, other) if height <= width else (other, size), mode)


def centre_crop(pictures: Tensor, size: int) -> Tensor:
    """The middle [..., size, size] of pictures [..., h, w]; an odd remainder is halved to even, as torchvision does.

    MovaError where a side is smaller.
    """
    height, width = pictures.shape[-2:]
    if min(height, width) < size:
        raise MovaError(f"cannot crop {size} x {size} from a picture of {height} x {width}")
    top, left = round((height - size) / 2), round((width - size) / 2)
    return pictures[..., top : top + size, left : left + size]
