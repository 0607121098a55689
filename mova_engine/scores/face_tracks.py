"""Face tracks of a shot and the mouth pictures cut from them, as SyncNet's pipeline makes them.

Boxes of one face in successive pictures are joined to a track, gaps are filled, and a square around each box, its
place and size smoothed over time, is cut out below its centre and resized. Source: joonson/syncnet_python (MIT), with
the settings of MOVA's evaluation.

Convention "mova" is that pipeline as it is: a face must be larger than 100 pixels whatever the picture's size, the
next face after a taken one is passed over, and smoothing takes zeros beyond both ends, which pulls the first and last
six pictures to the smallest values nearby. "corrected" asks for 100 / 720 of the picture's height, gives each track the
box that overlaps it most, and repeats the outermost value in smoothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.signal import medfilt

from mova_engine.errors import MovaError
from mova_engine.scores.face_boxes import Face, overlap
from mova_engine.scores.features.picture_size import resize_bilinear_u8

Convention = Literal["mova", "corrected"]
Array = NDArray[np.float64]
# The height for which the reference's least size in pixels is meant.
_MEANT_HEIGHT = 720


@dataclass(frozen=True)
class TrackConfig:
    """When boxes are one face, and which tracks count. Pictures at 25 per second."""

    least_overlap: float = 0.5
    longest_gap: int = 25
    """Pictures from one box to the next."""
    least_boxes: int = 20
    """A track has more boxes than this; a shot has at least as many pictures."""
    least_size: float = 100
    """Pixels that the mean width or the mean height exceeds."""


@dataclass(frozen=True)
class CropConfig:
    """What is cut out around a box: its half side is half the larger side of the box."""

    margin: float = 0.4
    """Beyond the half side: once to the left and right, twice below, none above."""
    grey: int = 110
    """Outside the picture."""
    smoothing: int = 13
    """Pictures of the running median, an odd number."""
    side: int = 224
    """Pixels of a mouth picture."""


@dataclass(frozen=True)
class FaceTrack:
    """frames int [n], consecutive picture numbers; boxes float64 [n, 4] left, top, right, bottom in pixels."""

    frames: NDArray[np.int64]
    boxes: Array

    def sound_seconds(self, fps: float = 25) -> tuple[float, float]:
        """From where to where the track's sound is cut."""
        return float(self.frames[0] / fps), float((self.frames[-1] + 1) / fps)


@dataclass(frozen=True)
class SmoothTrack:
    """Half sides [n], centres x [n] and y [n] of a track's crops, in pixels, float64."""

    half_side: Array
    x: Array
    y: Array


def find_tracks(
    faces: Sequence[Sequence[Face]],
    config: TrackConfig | None = None,
    convention: Convention = "mova",
    height: int | None = None,
) -> list[FaceTrack]:
    """Tracks of one shot from the faces of each of its pictures, in the order in which they begin.

    height: of the pictures, which "corrected" needs. MovaError where it is missing.
    """
    config = config or TrackConfig()
    if convention == "corrected":
        if height is None:
            raise MovaError("the corrected convention measures faces against the picture: give its height")
        config = replace(config, least_size=config.least_size * height / _MEANT_HEIGHT)
    left = [list(picture) for picture in faces]
    tracks = []
    while any(left):
        track = _take_first(left, config) if convention == "mova" else _take_best(left, config)
        if len(track) > config.least_boxes:
            filled = _fill_gaps(track)
            sides = filled.boxes[:, 2:] - filled.boxes[:, :2]
            if sides.mean(0).max() > config.least_size:
                tracks.append(filled)
    return tracks


def _take_first(left: list[list[Face]], config: TrackConfig) -> list[Face]:
    """Take from `left` one pass's track: in each picture the first face that continues it."""
    track: list[Face] = []
    for picture in left:
        index = 0
        while index < len(picture):
            face = picture[index]
            index += 1
            if track and face.frame - track[-1].frame > config.longest_gap:
                break
            if not track or overlap(face.box, track[-1].box) > config.least_overlap:
                # What follows moves into the place of the taken face, and is passed over.
                track.append(picture.pop(index - 1))
    return track


def _take_best(left: list[list[Face]], config: TrackConfig) -> list[Face]:
    """Take from `left` one track: in each picture the face that overlaps its last one most."""
    track: list[Face] = []
    for picture in left:
        if not picture:
            continue
        if not track:
            track.append(picture.pop(0))
            continue
        best = max(picture, key=lambda face: overlap(face.box, track[-1].box))
        near = best.frame - track[-1].frame <= config.longest_gap
        if near and overlap(best.box, track[-1].box) > config.least_overlap:
            track.append(best)
            picture.remove(best)
    return track


def _fill_gaps(track: list[Face]) -> FaceTrack:
    """A box for every picture from the first to the last face, linear between those found."""
    found = np.array([face.frame for face in track])
    boxes = np.array([face.box for face in track], np.float64)
    frames = np.arange(found[0], found[-1] + 1)
    return FaceTrack(frames, np.stack([np.interp(frames, found, side) for side in boxes.T], 1))


def smooth(track: FaceTrack, config: CropConfig | None = None, convention: Convention = "mova") -> SmoothTrack:
    """Running medians of half sides and centres: beyond the ends lie zeros ("mova") or the outermost value."""
    config = config or CropConfig()
    x0, y0, x1, y1 = track.boxes.T
    raw = (np.maximum(y1 - y0, x1 - x0) / 2, (x0 + x1) / 2, (y0 + y1) / 2)
    if convention == "mova":
        return SmoothTrack(*(medfilt(values, config.smoothing) for values in raw))
    return SmoothTrack(*(median_filter(values, config.smoothing, mode="nearest") for values in raw))


def crop_rectangles(track: SmoothTrack, config: CropConfig | None = None) -> NDArray[np.int64]:
    """For each picture [n, 5]: border, first row, last row + 1, first column, last column + 1.

    Rows and columns count in the picture padded by the border on all sides; the crop reaches one half side above the
    centre, 1 + 2 margin below, 1 + margin to either side. Everything is truncated.
    """
    margin = (config or CropConfig()).margin
    s = track.half_side
    border = (s * (1 + 2 * margin)).astype(np.int64)
    y, x = track.y + border, track.x + border
    edges = (y - s, y + s * (1 + 2 * margin), x - s * (1 + margin), x + s * (1 + margin))
    return np.stack([border, *(edge.astype(np.int64) for edge in edges)], 1)


def crop(picture: np.ndarray, rectangle: NDArray[np.int64], grey: int = 110) -> np.ndarray:
    """The rectangle of `crop_rectangles` cut from a picture uint8 [h, w, 3], grey outside the picture."""
    border, top, bottom, left, right = (int(edge) for edge in rectangle)
    height, width = picture.shape[:2]
    bottom, right = min(bottom, height + 2 * border), min(right, width + 2 * border)
    if not (0 <= top < bottom and 0 <= left < right):
        raise MovaError(f"a face crop {rectangle.tolist()} lies outside its picture of {height} x {width}")
    made = np.full((bottom - top, right - left, picture.shape[2]), grey, np.uint8)
    top, bottom, left, right = top - border, bottom - border, left - border, right - border
    inner = picture[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    made[max(-top, 0) :, max(-left, 0) :][: inner.shape[0], : inner.shape[1]] = inner
    return made


def mouth_pictures(
    pictures: Sequence[np.ndarray] | np.ndarray,
    track: FaceTrack,
    config: CropConfig | None = None,
    convention: Convention = "mova",
) -> np.ndarray:
    """Mouth pictures uint8 [n, 224, 224, 3] of a track, from the pictures uint8 [h, w, 3] of its whole clip."""
    config = config or CropConfig()
    rectangles = crop_rectangles(smooth(track, config, convention), config)
    cut: Iterable[np.ndarray] = (
        crop(pictures[frame], rectangle, config.grey) for frame, rectangle in zip(track.frames, rectangles, strict=True)
    )
    return np.stack([resize_bilinear_u8(face, config.side, config.side) for face in cut])
