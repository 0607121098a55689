"""Reads picture files as a viewer shows them, at the model's size."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from mova_engine.data.media.orientation import UPRIGHT
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.data.media.resize import finish
from mova_engine.data.media.still_colours import to_rgb
from mova_engine.data.media.warn import warn
from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file

# Video formats that Pillow recognises but cannot read.
NO_PICTURES = ("MPEG",)
# Brands of HEIF files: FFmpeg reads one tile as the whole picture, and Pillow cannot read them.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@in_reader_process
def is_picture(path: str | Path) -> bool:
    """Whether a file is a picture rather than a video, by its content. Raises MovaError if there is no such file."""
    require_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return image.format not in NO_PICTURES
    except Image.UnidentifiedImageError:
        return _is_heif(path)
    except Exception:
        # Recognised, but unreadable: `read_image` reports the reason.
        return True


@in_reader_process
def read_image(path: str | Path, height: int, width: int) -> np.ndarray:
    """Read a picture file to uint8 [height, width, 3], centre-cropped and resized as clips are.

    Of an animation the first picture is read. Orientation, transparency and colours (ICC profile, cICP, nclx, gamma and
    primaries of PNG, Adobe RGB by EXIF) are applied as for video frames; 16-bit grey is scaled to 8 bits. Raises
    MovaError, naming the file, if it cannot be read.
    """
    require_file(path)
    try:
        with warnings.catch_warnings(record=True) as damage:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                orientation = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
                picture = finish(*_pixels(image, path), orientation, height, width)
        for told in (one for one in damage if issubclass(one.category, UserWarning)):
            reason = " ".join(str(told.message).split()).replace(": ", ", ")
            warn(path, f"is read although damaged or unusual ({reason})")
        return picture
    except MovaError:
        raise
    except Image.UnidentifiedImageError:
        heif = "is HEIF, which cannot be read; convert it to PNG or JPEG" if _is_heif(path) else None
        raise MovaError(f"{path}: {heif or 'not a readable picture (of no known format)'}") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise MovaError(f"{path}: a picture of more than {most} megapixels is not read; scale it down first") from None
    except Exception as error:
        # Pillow's decoders report damage with exceptions of every kind.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MovaError(f"{path}: not a readable picture ({reason})") from None


def _is_heif(path: str | Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in HEIF_BRANDS


def _pixels(
    image: Image.Image, path: str | Path
) -> tuple[np.ndarray, np.ndarray | None, Callable[[np.ndarray], np.ndarray] | None]:
    """R'G'B' uint8 [h, w, 3], alpha uint8 [h, w] or None, and the function that converts the pixels to sRGB or None."""
    form = image.format
    alpha = None
    if image.mode.startswith("I") and "transparency" in image.info:
        alpha = np.where(np.array(image) == image.info["transparency"], 0, 255).astype(np.uint8)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        straight = image.convert(image.mode.upper()) if image.mode in ("RGBa", "La") else image
        alpha = np.array(straight.convert("RGBA").getchannel("A"))
        image = straight
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image, path)
    image.format = form  # which conversions of Pillow's drop
    pixels, convert = to_rgb(image, path)
    return pixels, alpha, convert


def _eight_bits(image: Image.Image, path: str | Path) -> Image.Image:
    """Convert 16-bit grey, or floats from 0 to 1, to 8-bit grey. Raises MovaError for values without a defined
    white.
    """
    values = np.array(image).astype(np.float64)
    if image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise MovaError(f"{path}: floating-point values beyond 0 to 1 state no white; save it with 8 or 16 bits")
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise MovaError(f"{path}: 32-bit integers state no white; save it with 8 or 16 bits")
    else:
        values = values / 65535
    if isinstance(image, TiffImageFile) and image.tag_v2.get(262) == 0:
        values = 1 - values  # "white is zero", which Pillow does not apply to these
    grey = Image.fromarray(np.round(values * 255).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey
