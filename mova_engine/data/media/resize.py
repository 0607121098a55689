"""Crops and resizes pictures to the model's size; the same functions serve clips and first frames."""

from collections.abc import Callable

import numpy as np

from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.media.orientation import swaps_sides, turn_upright
from mova_engine.errors import MovaError

# Level of the background behind transparent pixels: white, like the first frame that is used if none is given.
BACKGROUND = 255


class OutsideError(MovaError):
    """A crop that the picture does not hold, or a pad that does not hold the crop."""


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
    edit: ClipEdit = NO_EDIT,
) -> np.ndarray:
    """Turn, crop, resize and convert a stored picture or video frame for display: uint8 [height, width, 3].

    values: [h, w, c]. alpha: uint8 [h, w], 255 for opaque; None: opaque everywhere. to_rgb: converts values to R'G'B'
    uint8 [..., 3]; None: they are R'G'B' already. orientation: EXIF's number. pixel_aspect: of the stored pixels,
    before turning. edit: crop and pad of the upright picture. Raises OutsideError where it does not hold the crop.
    """
    values, turned = turn_upright(values, orientation), swaps_sides(orientation)
    if alpha is not None and alpha.min() < 255:
        values = over_background(to_rgb(values) if to_rgb else values, turn_upright(alpha, orientation))
        to_rgb = None
    if edit.crop or edit.pad:
        values, to_rgb = _edited(values, to_rgb, edit, 1 if turned else pixel_aspect, pixel_aspect if turned else 1)
    if turned:
        pixel_aspect = 1 / pixel_aspect
    pixels = crop_resize(values, height, width, pixel_aspect)
    return to_rgb(pixels) if to_rgb else np.ascontiguousarray(pixels)


def _edited(
    values: np.ndarray, to_rgb: Callable[[np.ndarray], np.ndarray] | None, edit: ClipEdit, wider: float, higher: float
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
    """Upright values [h, w, c] after crop and pad, and what converts them: for black they become R'G'B'. wider, higher:
    size of a pixel as it is shown; crop and pad count shown pixels.
    """
    size = values.shape[1::-1]
    whole = max(1, round(size[0] * wider)), max(1, round(size[1] * higher))
    crop = edit.crop or (0, 0, *whole)
    (left, right), (top, bottom) = (_stored(crop[i], crop[i + 2], size[i], whole[i]) for i in (0, 1))
    if crop[0] + crop[2] > whole[0] or crop[1] + crop[3] > whole[1]:
        raise OutsideError(f"the crop {list(crop)} is not within its pictures, which are {whole[0]}x{whole[1]}")
    values = values[top:bottom, left:right]
    if edit.pad is None:
        return values, to_rgb
    if edit.pad[0] < crop[2] or edit.pad[1] < crop[3]:
        raise OutsideError(f"the pad {list(edit.pad)} is less than the picture in it, which is {crop[2]}x{crop[3]}")
    pixels = to_rgb(values) if to_rgb else values
    height, width = pixels.shape[:2]
    (_, columns), (_, rows) = (_stored(0, edit.pad[i], size[i], whole[i]) for i in (0, 1))
    black = np.zeros((max(rows, height), max(columns, width), 3), np.uint8)
    y, x = (black.shape[0] - height) // 2, (black.shape[1] - width) // 2
    black[y : y + height, x : x + width] = pixels
    return black, None


def _stored(first: int, count: int, stored: int, shown: int) -> tuple[int, int]:
    """Of `stored` pixels that are shown as `shown`, the range of `count` shown ones from `first` on."""
    begin = round(first * stored / shown)
    return begin, max(begin + 1, round((first + count) * stored / shown))
