"""Converts a decoded video frame to the picture that a player shows: colours, transparency, orientation."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation
from PIL import Image

from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.media.colour import (
    LUMA,
    MATRICES,
    MATRIX_709,
    MATRIX_RGB,
    PRIMARIES,
    TRANSFERS,
    UNCONVERTED_MATRICES,
    UNSTATED,
    Colours,
    decode_matrix,
    known,
    settle,
    to_display,
)
from mova_engine.data.media.orientation import UPRIGHT, from_matrix
from mova_engine.data.media.resize import OutsideError, finish
from mova_engine.data.media.still_colours import from_profile
from mova_engine.data.media.warn import warn
from mova_engine.errors import MovaError

SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
DEPTHS = (8, 9, 10, 12, 14, 16)
# Decoders whose side data may not be looked at, see `_side_data`, and EXIF's numbers by quarter turns to the left.
NAMES_PROFILES = ("png", "apng")
BY_ANGLE = {1: 8, 2: 3, 3: 6}
# What else changes how a picture is to be shown, and is left as it is stored.
AS_STORED = {Type.STEREO3D: "stereoscopic pictures", Type.SPHERICAL: "spherical pictures"}


def frame_pixels(
    frame: VideoFrame,
    path: str | Path,
    height: int,
    width: int,
    pixel_aspect: float,
    codec: str = "",
    profile: bytes | None = None,
    edit: ClipEdit = NO_EDIT,
) -> np.ndarray:
    """The frame as uint8 [height, width, 3], cropped and resized. Raises MovaError for unknown colour tags, and for a
    crop that the picture does not hold.

    pixel_aspect: width / height of a stored pixel. codec: name of the decoder. profile: ICC profile that applies if the
    frame has none. edit: crop and pad of the upright picture, before it is cropped to the shape.
    """
    for kind, name in AS_STORED.items():
        if _side_data(frame, kind, codec):
            warn(path, f"states {name}, which are read as they are stored")
    colours = frame_colours(frame, path, codec)
    profile = _side_data(frame, Type.ICC_PROFILE, codec) or profile
    values, to_rgb = _by_profile(frame, colours, profile, path) if profile else _values(frame, colours)
    alpha = None
    if len(frame.format.components) in (2, 4) or frame.format.has_palette:
        alpha = _reformat(frame, "rgba", MATRIX_709).to_ndarray()[..., 3]
    orientation = frame_orientation(frame, path, codec)
    try:
        return finish(values, alpha, to_rgb, orientation, height, width, pixel_aspect, edit)
    except OutsideError as error:
        raise MovaError(f"{path}: {error}") from None


def _side_data(frame: VideoFrame, kind: Type, codec: str) -> bytes | None:
    """The frame's side data of one kind; None if there is none or if it cannot be read.

    PyAV 18 frees the metadata of side data twice, which crashes the process. Only PNG's decoder sets such metadata (the
    name of an ICC profile). Reading one kind of side data reads all of them, so none is read from PNG frames.
    """
    if codec in NAMES_PROFILES:
        return None
    try:
        return bytes(cast(SideDataContainer, frame.side_data)[kind])  # PyAV's stubs call it a TypedDict
    except KeyError:
        return None


def frame_orientation(frame: VideoFrame, path: str | Path, codec: str = "") -> int:
    """EXIF's number for the frame's display matrix. Raises MovaError if that is no quarter turn."""
    if codec in NAMES_PROFILES:
        return BY_ANGLE.get(round(frame.rotation / 90) % 4, UPRIGHT)
    data = _side_data(frame, Type.DISPLAYMATRIX, codec)
    if data is None:
        return UPRIGHT
    matrix = np.frombuffer(data, np.int32)
    if not matrix[[0, 1, 3, 4]].any():
        warn(path, "its display matrix is all zeros and is not applied")
        return UPRIGHT
    orientation = from_matrix(matrix)
    if orientation is None:
        angle = f"{np.degrees(np.arctan2(float(matrix[1]), float(matrix[0]))):.4g} degrees"
        raise MovaError(f"{path}: its display matrix turns by {angle}: only quarter turns can be read; re-encode it")
    return orientation


def frame_colours(frame: VideoFrame, path: str | Path, codec: str = "") -> Colours:
    """The colour coding of a frame, from its tags. Raises MovaError if it cannot be converted."""
    matrix, transfer, primaries = frame.colorspace, frame.color_trc, frame.color_primaries
    rgb = frame.format.is_rgb or frame.format.has_palette
    grey = len(frame.format.components) <= 2 and not rgb
    if not rgb and matrix in UNCONVERTED_MATRICES:
        name = UNCONVERTED_MATRICES[matrix]
        raise MovaError(f"{path}: its colours are coded as {name}, which cannot be read; re-encode it as BT.709")
    if transfer == UNSTATED and _side_data(frame, Type.DOVI_METADATA, codec):
        raise MovaError(
            f"{path}: is Dolby Vision without a base layer that can be read; re-encode it as BT.709 or HDR10"
        )
    if not rgb and not grey and matrix == MATRIX_RGB:
        warn(path, "states an RGB matrix for Y'CbCr pictures, which is taken as not stated")
        matrix = UNSTATED
    matrix = known("matrix", matrix, MATRICES, path)
    transfer = known("transfer curve", transfer, TRANSFERS, path)
    primaries = known("colour primaries", primaries, PRIMARIES, path)
    # FFmpeg takes RGB and grey pictures that state nothing as full, all others as limited.
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    full = full or ((rgb or grey) and frame.color_range != ColorRange.MPEG)
    return settle(matrix, full, transfer, primaries, rgb=rgb, height=frame.height, width=frame.width)


def _values(frame: VideoFrame, colours: Colours) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray] | None]:
    """Values [h, w, c], and the function that converts them to R'G'B' uint8 [..., 3] (None: they are R'G'B')."""
    form = frame.format
    rgb = form.is_rgb or form.has_palette
    one_scale = colours.full if rgb or len(form.components) <= 2 else colours.matrix in LUMA
    if form.is_bayer or form.name.startswith("xyz") or (colours.shown_as_stored and one_scale):
        # The scaler converts these by itself.
        return _reformat(frame, "rgb24", UNSTATED if rgb else colours.matrix).to_ndarray(), None
    bits = next((depth for depth in DEPTHS if depth >= max(part.bits for part in form.components)), 16)
    if rgb:
        bits = 8 if bits == 8 else 16
        values = _reformat(frame, "rgb24" if bits == 8 else "rgb48le", UNSTATED).to_ndarray()
    else:
        grey = len(form.components) <= 2
        name = f"{'gray' if grey else 'yuv444p'}{'' if bits == 8 else f'{bits}le'}"
        values = _planes(_reformat(frame, name, MATRIX_709), 1 if grey else 3, np.uint8 if bits == 8 else np.uint16)

    def to_rgb(codes: np.ndarray) -> np.ndarray:
        return to_display(decode_matrix(codes, bits, colours), colours.transfer, colours.primaries)

    return values, to_rgb


def _by_profile(
    frame: VideoFrame, colours: Colours, profile: bytes, path: str | Path
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """As `_values`, for frames with an ICC profile (MJPEG, PNG), which states everything except the matrix."""
    grey = len(frame.format.components) <= 2 and not frame.format.has_palette
    values = _reformat(frame, "rgb24", UNSTATED if frame.format.is_rgb else colours.matrix).to_ndarray()

    def to_srgb(rgb: np.ndarray) -> np.ndarray:
        image = Image.fromarray(np.ascontiguousarray(rgb[..., 0] if grey else rgb))
        return np.array(from_profile(image, profile, path))

    return values, to_srgb


def _planes(frame: VideoFrame, count: int, dtype: type) -> np.ndarray:
    """The first `count` planes of a frame with planes of full size, [h, w, count]."""
    planes = [np.frombuffer(memoryview(plane), dtype) for plane in frame.planes[:count]]
    return np.stack([plane.reshape(frame.height, -1)[:, : frame.width] for plane in planes], axis=-1)


def _reformat(frame: VideoFrame, form: str, matrix: int) -> VideoFrame:
    """The frame in another pixel format, its values taken as coded with `matrix`."""
    stated, frame.colorspace = frame.colorspace, matrix
    try:
        return frame.reformat(format=form, interpolation=SCALER, threads=1)
    finally:
        frame.colorspace = stated
