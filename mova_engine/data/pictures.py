"""The pictures of a clip: for each instant the source picture on display then, as RGB of the clip's size."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from av.container import InputContainer
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation

from mova_engine.config import ClipConfig
from mova_engine.data.container import PREROLL, decode, decode_from
from mova_engine.data.transform import crop_resize
from mova_engine.errors import MovaError

T = TypeVar("T")

SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def exact_rate(fps: float) -> Fraction:
    """A frame rate as the fraction it stands for (23.976023976 is 24000/1001)."""
    return Fraction(fps).limit_denominator(1001)


def read_pictures(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction
) -> tuple[Fraction, np.ndarray]:
    """Return the first picture's time in seconds on the container's clock, and the pictures uint8 [f, h, w, 3]."""
    stream = container.streams.video[0]
    # A decoder with threads of its own may not be freed in another process, which forked workers can come to do; and
    # most of the time goes to what follows it.
    stream.codec_context.thread_count = 1
    frames = decode(container, stream, path)
    first = next(frames, None)
    if first is None:
        raise MovaError(f"{path}: damaged or cut short: no picture can be decoded")
    origin = first[0]
    begin = origin + start
    frames = chain([first], frames) if start <= PREROLL else decode_from(container, stream, path, begin, origin)

    rate = exact_rate(clip.fps)
    wanted = [begin + k / rate for k in range(clip.frames)]
    video = np.empty((clip.frames, clip.height, clip.width, 3), np.uint8)
    count, last = 0, None
    for frame in pick_frames(_until_end(frames, stream), wanted, reach=1 / (2 * rate)):
        if frame is last:
            video[count] = video[count - 1]
        else:
            video[count] = _to_pixels(frame, stream, clip)
        count, last = count + 1, frame
    if count < clip.frames:
        needed = start + Fraction(clip.frames) / rate
        declared = stream.duration * stream.time_base if stream.duration else Fraction(0)
        why = f"cut short (it declares {float(declared):.3f} s)" if declared >= needed else "too short"
        given = f"{count} of the clip's {clip.frames} frames ({clip.duration:.3f} s at {clip.fps:g} fps)"
        raise MovaError(f"{path}: {why}: it gives {given}" + (f" after {float(start):g} s" if start else ""))
    return origin, video


def pick_frames(
    frames: Iterator[tuple[Fraction, T | None]], wanted: Sequence[Fraction], reach: Fraction
) -> Iterator[T]:
    """For each of the ascending `wanted` times, yield the frame whose own time is nearest (the earlier of two).

    A frame whose time is yet to come is taken only if it does within `reach`: where a picture stands for long, as with
    a variable frame rate, the one on display is right however near the next one is. `frames` ends with (time, None):
    the time at which the last frame leaves the display; from there on nothing is yielded.
    """
    shown_time, shown = next(frames)
    following_time, following = next(frames, (None, None))
    for time in wanted:
        while following_time is not None and (
            following_time <= time or (following is not None and following_time - time < min(time - shown_time, reach))
        ):
            shown_time, shown = following_time, following
            following_time, following = next(frames, (None, None))
        if shown is None:
            return
        yield shown


def _until_end(
    frames: Iterator[tuple[Fraction, VideoFrame]], stream: Stream
) -> Iterator[tuple[Fraction, VideoFrame | None]]:
    """Append the time at which the last frame leaves the display, with None."""
    time, frame = Fraction(0), None
    for time, frame in frames:
        yield time, frame
    if frame is not None and frame.duration:
        time += frame.duration * frame.time_base
    elif stream.average_rate:
        time += 1 / stream.average_rate
    yield time, None


def _to_pixels(frame: VideoFrame, stream: Stream, clip: ClipConfig) -> np.ndarray:
    """RGB as a player would show it, cropped and resized: turned upright, with the file's pixel aspect."""
    pixels = frame.reformat(format="rgb24", interpolation=SCALER, threads=1).to_ndarray()
    aspect = float(stream.sample_aspect_ratio or 1)
    quarters = round(frame.rotation / 90) % 4
    if quarters:
        pixels = np.ascontiguousarray(np.rot90(pixels, quarters))
        aspect = 1 / aspect if quarters % 2 else aspect
    return crop_resize(pixels, clip.height, clip.width, aspect)
