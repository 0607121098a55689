"""Reads the colour information of picture files and converts their pixels to sRGB.

Order of precedence as in the PNG specification (third edition): code points (cICP; for AVIF the ICC profile precedes
its nclx), the ICC profile, the sRGB chunk, gamma and primaries; for photos without any of these, Adobe RGB by EXIF.
"""

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import ExifTags, Image, ImageCms

from mova_engine.data.media.colour import (
    ADOBE_RGB,
    PRIMARIES,
    PRIMARIES_709,
    TRANSFERS,
    UNSTATED,
    change_light,
    decode_matrix,
    known,
    settle,
    srgb_code,
    srgb_light,
    to_709,
    to_display,
)
from mova_engine.data.media.warn import warn

# PNG's gamma of ordinary pictures, and how far from it (as a factor) it still counts as that.
ORDINARY_GAMMA, TOLERANCE = 1 / 2.2, 0.05
ADOBE_GAMMA = 563 / 256
# Where AVIF's colour box is searched, in bytes from the start: it stands before the pictures.
HEADER = 1 << 16

Convert = Callable[[np.ndarray], np.ndarray]


def to_rgb(image: Image.Image, path: str | Path) -> tuple[np.ndarray, Convert | None]:
    """R'G'B' uint8 [h, w, 3] of a loaded picture, and the function that converts it to sRGB (None: it is sRGB)."""
    codes = _code_points(path, image.format)
    profile = image.info.get("icc_profile")
    if codes and (image.format == "PNG" or not profile):
        return np.array(image.convert("RGB")), _from_code_points(codes, path)
    if profile:
        return np.array(from_profile(image, profile, path)), None
    return np.array(image.convert("RGB")), _from_other_facts(image, path)


def _code_points(path: str | Path, form: str | None) -> tuple[int, int, bool] | None:
    """Primaries, transfer curve and "full range" of PNG's cICP or AVIF's nclx, whose matrix is undone already."""
    with open(path, "rb") as file:
        if form == "PNG":
            file.seek(8)
            while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
                size = int.from_bytes(head[:4], "big")
                if head[4:] == b"cICP" and size == 4:
                    primaries, transfer, _, full = file.read(4)
                    return primaries, transfer, bool(full)
                file.seek(size + 4, io.SEEK_CUR)
        elif form == "AVIF":
            header = file.read(HEADER)
            at = header.find(b"colrnclx") + 8
            if 8 <= at <= len(header) - 4:
                return *struct.unpack(">HH", header[at : at + 4]), True
    return None


def _from_code_points(codes: tuple[int, int, bool], path: str | Path) -> Convert | None:
    transfer = known("transfer curve", codes[1], TRANSFERS, path)
    primaries = known("colour primaries", codes[0], PRIMARIES, path)
    colours = settle(UNSTATED, codes[2], transfer, primaries, rgb=True, height=0, width=0)
    if colours.full and colours.shown_as_stored:
        return None
    return lambda rgb: to_display(decode_matrix(rgb, 8, colours), colours.transfer, colours.primaries)


def from_profile(image: Image.Image, profile: bytes, path: str | Path) -> Image.Image:
    """Convert a picture to sRGB by its ICC profile. A profile that does not fit is not applied, as in browsers."""
    mode = image.mode if image.mode in ("RGB", "L", "CMYK", "LAB") else "L" if image.mode in ("LA", "1") else "RGB"
    plain = image.convert(mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        profile_space = cast(Any, source.profile).xcolor_space  # Pillow's stubs name the constructor's argument here
        if mode == "L" and profile_space.strip() == "RGB":
            plain = plain.convert("RGB")
        transform = _transform(source, plain.mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        warn(path, "its ICC profile does not fit the picture and is not applied")
        return plain.convert("RGB")
    return _transformed(plain, transform) if transform else plain.convert("RGB")


def _transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    found = ImageCms.applyTransform(image, transform)
    assert found is not None, "only an in-place transform returns None"
    return found


def _transform(source: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform from a profile to sRGB; None if it changes only the rounding, so that sRGB pictures stay exact."""
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if mode not in ("RGB", "L"):
        return transform
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, -1, 3)
    probe = Image.fromarray(grid if mode == "RGB" else np.ascontiguousarray(grid[..., 0]))
    error = np.abs(np.array(_transformed(probe, transform)).astype(int) - np.array(probe.convert("RGB")))
    return None if error.max() <= 2 else transform


def _from_other_facts(image: Image.Image, path: str | Path) -> Convert | None:
    if image.format == "PNG":
        gamma, corners = image.info.get("gamma"), image.info.get("chromaticity")
        return None if "srgb" in image.info else _from_gamma(gamma, corners, path)
    if image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == "R03":
        return lambda rgb: _apply(rgb, lambda values: np.power(values, ADOBE_GAMMA), srgb_code, ADOBE_RGB)
    return None


def _from_gamma(gamma: float | None, corners: tuple[float, ...] | None, path: str | Path) -> Convert | None:
    """PNG's gAMA and cHRM (white, red, green, blue)."""
    primaries = PRIMARIES[PRIMARIES_709]
    if corners:
        white, *others = zip(corners[::2], corners[1::2], strict=True)
        try:
            if np.abs(np.array(to_709((*others, white))) - np.eye(3)).max() > 0.01:
                primaries = (*others, white)
        except (np.linalg.LinAlgError, ZeroDivisionError):
            warn(path, "states primaries without meaning, which are not applied")
    if gamma and abs(gamma / ORDINARY_GAMMA - 1) > TOLERANCE:
        return lambda rgb: _apply(rgb, lambda values: np.power(values, 1 / gamma), srgb_code, primaries)
    if primaries == PRIMARIES[PRIMARIES_709]:
        return None
    return lambda rgb: _apply(rgb, srgb_light, srgb_code, primaries)


def _apply(rgb: np.ndarray, decode: Convert, encode: Convert, primaries: tuple) -> np.ndarray:
    values = rgb.astype(np.float32) / 255
    return np.round(change_light(values, decode, encode, primaries) * 255).astype(np.uint8)
