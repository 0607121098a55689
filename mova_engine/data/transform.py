"""Pictures to the model's size, the same way for clips and for first frames."""

from pathlib import Path

import numpy as np
from PIL import Image

from mova_engine.errors import MovaError


def centre_crop(pixels: np.ndarray, aspect: float) -> np.ndarray:
    """View of the largest centred part of [h, w, 3] whose width is `aspect` times its height, to the nearest pixel."""
    height, width = pixels.shape[:2]
    crop_height = min(height, max(1, round(width / aspect)))
    crop_width = min(width, max(1, round(height * aspect)))
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return pixels[top : top + crop_height, left : left + crop_width]


def crop_resize(pixels: np.ndarray, height: int, width: int, pixel_aspect: float = 1.0) -> np.ndarray:
    """Centre-crop and resize uint8 [h, w, 3] to uint8 [height, width, 3].

    Bicubic, with the filter widened when shrinking (antialiased); what has the right size already passes unchanged.
    `pixel_aspect` is the width of a source pixel over its height (1: square).
    """
    cropped = centre_crop(pixels, width / height / pixel_aspect)
    if cropped.shape[:2] == (height, width):
        return cropped
    # Here, so that the process that decodes starts fast: few clips of the engine's own need it.
    import torch
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(np.ascontiguousarray(cropped)).permute(2, 0, 1).unsqueeze(0)
    resized = interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()


def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """Read a picture file to uint8 [height, width, 3], centre-cropped and resized as clips are. MovaError names it."""
    try:
        with Image.open(path) as image:
            return crop_resize(np.array(image.convert("RGB")), height, width)
    except FileNotFoundError:
        raise MovaError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow's decoders report damage with any of these.
        raise MovaError(f"{path}: not a readable picture ({error})") from None
