"""Crops and resizes pictures to the model's size; the same functions serve clips and first frames."""

from collections.abc import Callable

import numpy as np

from mova_engine.data.clip_edit import Crop
from mova_engine.data.media.orientation import swaps_sides, turn_upright
from mova_engine.errors import MovaError

# Level of the background behind transparent pixels: white, like the first frame that is used if none is given.
BACKGROUND = 255
# The least share of a crop that must be picture: less is a crop of another file.
LEAST_PICTURE = 0.25


class OutsideError(MovaError):
    """A crop of which little is picture."""


def centre_crop(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """View of the largest centred part of [h, w, 3] whose width is `aspect` times its height, to the nearest pixel."""
    height, width = pixels.shape[:2]
    crop_height = min(height, max(1, round(width / aspect)))
    crop_width = min(width, max(1, round(height * aspect)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return pixels[top : top + crop_height, left : left + crop_width]


def crop_resize(pixels: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """Centre-crop and resize [h, w, c] to [height, width, c]: uint8 to uint8, wider values to float32.

    Bicubic with antialiasing; pixels that already have the right size are returned unchanged. pixel_aspect: width of a
    source pixel divided by its height (1: square).
    """
    cropped = centre_crop(pixels, width / height / pixel_aspect)
    if cropped.shape[:2] == (height, width):
        return cropped
    # Imported late, so that the decoding process starts fast: clips of the right size need no torch.
    import torch
    from torch.nn.functional import interpolate

    if cropped.dtype != np.uint8:
        cropped = cropped.astype(np.float32)
    planes = torch.from_numpy(np.ascontiguousarray(cropped)).permute(2, 0, 1).unsqueeze(0)
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


def over_background(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend pixels uint8 [h, w, 3] with the background by straight alpha, uint8 [h, w]."""
    cover = alpha[..., None].astype(np.uint32)
    return ((pixels * cover + BACKGROUND * (255 - cover) + 127) // 255).astype(np.uint8)


def finish(
    values: np.ndarray,
    alpha: np.ndarray | None,
    to_rgb: Callable[[np.ndarray], np.ndarray] | None,
    orientation: int,
    height: int,
    width: int,
    pixel_aspect: float = 1.0,
    crop: Crop | None = None,
) -> np.ndarray:
    """Turn, crop, resize and convert a stored picture or video frame for display: uint8 [height, width, 3].

    values: [h, w, c]. alpha: uint8 [h, w], 255 for opaque; None: opaque everywhere. to_rgb: converts values to R'G'B'
    uint8 [..., 3]; None: they are R'G'B' already. orientation: EXIF's number. pixel_aspect: of the stored pixels,
    before turning. crop: what is taken of the upright picture. Raises OutsideError for such a crop.
    """
    values, turned = turn_upright(values, orientation), swaps_sides(orientation)
    if alpha is not None and alpha.min() < 255:
        values = over_background(to_rgb(values) if to_rgb else values, turn_upright(alpha, orientation))
        to_rgb = None
    if crop is not None:
        values, to_rgb = _cropped(values, to_rgb, crop, 1 if turned else pixel_aspect, pixel_aspect if turned else 1)
    if turned:
        pixel_aspect = 1 / pixel_aspect
    pixels = crop_resize(values, height, width, pixel_aspect)
    return to_rgb(pixels) if to_rgb else np.ascontiguousarray(pixels)


def _cropped(
    values: np.ndarray, to_rgb: Callable[[np.ndarray], np.ndarray] | None, crop: Crop, wider: float, higher: float
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
    """The part `crop` of upright values [h, w, c], and what converts it. What lies beyond the picture is black, for
    which values become R'G'B'. wider, higher: size of a pixel as it is shown; a crop counts shown pixels.
    """
    stored_height, stored_width = values.shape[:2]
    left, right, shown_width = _span(crop[0], crop[2], stored_width, wider)
    top, bottom, shown_height = _span(crop[1], crop[3], stored_height, higher)
    inside = values[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if inside.shape[0] * inside.shape[1] < LEAST_PICTURE * (bottom - top) * (right - left):
        size = f"{shown_width}x{shown_height}"
        raise OutsideError(f"the crop {list(crop)} lies outside of its pictures, which are {size}")
    if inside.shape[:2] == (bottom - top, right - left):
        return inside, to_rgb
    pixels = to_rgb(inside) if to_rgb else inside
    black = np.zeros((bottom - top, right - left, 3), np.uint8)
    y, x = max(-top, 0), max(-left, 0)
    black[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    return black, None


def _span(first: int, count: int, stored: int, pixel: float) -> tuple[int, int, int]:
    """(first, last) stored pixel of `count` shown ones from `first` on, and how many are shown of `stored` ones."""
    shown = max(1, round(stored * pixel))
    begin = round(first * stored / shown)
    return begin, max(begin + 1, round((first + count) * stored / shown)), shown
