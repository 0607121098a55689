"""Pictures to the model's size, the same way for clips and for first frames."""

from collections.abc import Callable

import numpy as np

from mova_engine.data.media.orientation import swaps_sides, turn_upright

# What shows through transparent parts: white, as on a page, and as the first frame that is used where none is given.
BACKGROUND = 255


def centre_crop(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """View of the largest centred part of [h, w, 3] whose width is `aspect` times its height, to the nearest pixel."""
    height, width = pixels.shape[:2]
    crop_height = min(height, max(1, round(width / aspect)))
    crop_width = min(width, max(1, round(height * aspect)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return pixels[top : top + crop_height, left : left + crop_width]


def crop_resize(pixels: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """Centre-crop and resize [h, w, c] to [height, width, c]: uint8 to uint8, wider values to float32.

    Bicubic, with the filter widened when shrinking (antialiased); what has the right size already passes unchanged.
    `pixel_aspect` is the width of a source pixel over its height (1: square).
    """
    cropped = centre_crop(pixels, width / height / pixel_aspect)
    if cropped.shape[:2] == (height, width):
        return cropped
    # Here, so that the process that decodes starts fast: few clips of the engine's own need it.
    import torch
    from torch.nn.functional import interpolate

    if cropped.dtype != np.uint8:
        cropped = cropped.astype(np.float32)
    planes = torch.from_numpy(np.ascontiguousarray(cropped)).permute(2, 0, 1).unsqueeze(0)
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


def over_background(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels uint8 [h, w, 3] with straight alpha uint8 [h, w] before the background."""
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
) -> np.ndarray:
    """A stored picture, of a file of its own or of a video, as it is to be seen: uint8 [height, width, 3].

    Values [h, w, c]; `to_rgb` makes R'G'B' uint8 [..., 3] of them (None: they are that). `alpha` uint8 [h, w] is 255
    where the picture covers the background; `orientation` is EXIF's; `pixel_aspect` is that of the stored pixels.
    """
    values = turn_upright(values, orientation)
    if swaps_sides(orientation):
        pixel_aspect = 1 / pixel_aspect
    if alpha is not None and alpha.min() < 255:
        pixels = over_background(to_rgb(values) if to_rgb else values, turn_upright(alpha, orientation))
        return crop_resize(pixels, height, width, pixel_aspect)
    pixels = crop_resize(values, height, width, pixel_aspect)
    return to_rgb(pixels) if to_rgb else np.ascontiguousarray(pixels)
