"""Reads the pictures of a clip: for each time of the clip the source picture on display, as RGB of the clip's size."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
from av.codec import CodecContext
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.media.container import PREROLL, Reader, open_media, video_stream
from mova_engine.data.media.frames import NAMES_PROFILES, frame_orientation, frame_pixels
from mova_engine.data.media.interlacing import deinterlace
from mova_engine.data.media.orientation import swaps_sides
from mova_engine.data.media.timeline import Timeline, known_times
from mova_engine.data.media.warn import warn
from mova_engine.errors import MovaError

T = TypeVar("T")

# Seconds after the first picture in which the times of the pictures are checked against each other.
OPENING = Fraction(1)
# Seconds for which a program stream may go without a stamp.
LATE_STAMPS = Fraction(2)

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def exact_rate(fps: float) -> Fraction:
    """A frame rate as an exact fraction (23.976023976 -> 24000/1001)."""
    return Fraction(fps).limit_denominator(1001)


def declared_duration(stream: VideoStream) -> Fraction:
    """The duration that a stream declares, in seconds; 0 if it declares none."""
    return stream.duration * stream.time_base if stream.duration and stream.time_base else Fraction(0)


def first_picture(container: InputContainer, path: str | Path) -> Fraction:
    """The time of the file's first picture, in seconds on the container's clock. Raises MovaError if there is none."""
    return open_pictures(container, path)[1]


def shown_size(container: InputContainer, path: str | Path) -> tuple[int, int]:
    """Width and height of the file's pictures as they are shown, by the first one: upright, with square pixels."""
    _, _, first = open_pictures(container, path)
    stream = video_stream(container, path)
    width, height = max(1, round(first.width * float(stream.sample_aspect_ratio or 1))), first.height
    turned = swaps_sides(frame_orientation(first, path, stream.codec_context.name))
    return (height, width) if turned else (width, height)


def open_pictures(container: InputContainer, path: str | Path) -> tuple[Reader[VideoFrame], Fraction, VideoFrame]:
    """A reader of the file's pictures, the first one's time, and the first one."""
    stream = video_stream(container, path)
    decoder = choose_decoder(stream, path)
    # One thread: a decoder with several must not be freed in another process, as a forked worker might do, and decoding
    # takes the smaller part of the time.
    decoder.thread_count = 1
    reader = Reader(container, stream, path, decoder)
    first = reader.first()
    if first is None:
        raise MovaError(f"{path}: damaged or cut short: no picture can be decoded")
    return reader, *first


def read_pictures(
    container: InputContainer, path: str | Path, clip: ClipConfig, start: Fraction, edit: ClipEdit = NO_EDIT
) -> tuple[Fraction, np.ndarray]:
    """Return the first picture's time in seconds on the container's clock, and the pictures uint8 [f, h, w, 3]. edit:
    what is done to them.
    """
    reader, origin, _ = open_pictures(container, path)
    stream = video_stream(container, path)
    begin = origin + start
    search = start > PREROLL
    if search:
        check_opening(path)
    frames = known_times(reader.frames(begin, search=search), container, stream, path)
    frames = deinterlace(frames, path, stream.codec_context.name)
    timeline = Timeline(frames, stream, stated=reader.states_durations)

    rate = exact_rate(clip.fps)
    wanted = [begin + k / rate for k in range(clip.frames)]
    aspect, codec = float(stream.sample_aspect_ratio or 1), stream.codec_context.name
    profile = _png_profile(path) if codec in NAMES_PROFILES else None
    video = np.empty((clip.frames, clip.height, clip.width, 3), np.uint8)
    count, last = 0, None
    for frame in pick_frames(iter(timeline), wanted, reach=1 / (2 * rate)):
        if frame is last:
            video[count] = video[count - 1]
        else:
            video[count] = frame_pixels(frame, path, clip.height, clip.width, aspect, codec, profile, edit)
        count, last = count + 1, frame
    if count < clip.frames:
        needed = start + Fraction(clip.frames) / rate
        declared = declared_duration(stream)
        why = "too short"
        if reader.restart is not None:
            why = f"its clock restarts {float(reader.restart - origin):.3f} s after its first picture (joined files?)"
        elif declared >= needed:
            why = f"cut short (it declares {float(declared):.3f} s)"
        given = f"{count} of the clip's {clip.frames} frames ({clip.duration:.3f} s at {clip.fps:g} fps)"
        raise MovaError(f"{path}: {why}: it gives {given}" + (f" after {float(start):g} s" if start else ""))
    end = wanted[-1]
    if not search:
        timeline.see_until(origin + OPENING)
        _refuse_off_grid(timeline, origin + OPENING, path)
    _refuse_crowded(timeline, origin, end if search else max(end, origin + OPENING), path)
    if container.format.name == "mpeg":
        # Pictures are counted from one stamp to the next: where some are missing the next one tells.
        end += LATE_STAMPS
        timeline.see_until(end)
    hole = timeline.hole(wanted[0], end, (origin, reader.second))
    if hole is None and reader.resumed is not None:
        # The clock goes back to where a picture seems to have stayed: it is the next one's time that is wrong.
        hole = timeline.gap_around(reader.resumed, wanted[0], end)
    if hole is not None:
        missing = f"{float(hole[1] - hole[0]):.3f} s without a picture from {float(hole[0] - origin):.3f} s on"
        raise MovaError(f"{path}: damaged video: {missing}")
    return origin, video


def check_opening(path: str | Path) -> None:
    """Raise MovaError if the times of the file's first pictures are wrong: all clips' times are relative to them.

    For clips that begin later and do not read these pictures. Damaged pictures are no error here.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.thread_count = 1
        reader = Reader(container, stream, path)
        first = reader.first()
        if first is None:
            return
        frames = known_times(reader.frames(first[0], search=False), container, stream, path)
        timeline = Timeline(frames, stream, stated=reader.states_durations)
        end = first[0] + OPENING
        timeline.see_until(end)
        if reader.restart is not None and reader.restart < end:
            after = float(reader.restart - first[0])
            raise MovaError(f"{path}: its clock restarts {after:.3f} s after its first picture (joined files?)")
        hole = timeline.hole(first[0], end, (first[0], reader.second))
        # A gap of a multiple of a picture's duration means lost pictures, which this clip does not need.
        if hole is not None and not timeline.is_whole(hole[1] - hole[0]):
            step = f"{float(hole[1] - hole[0]):.3f} s at {float(hole[0] - first[0]):.3f} s"
            raise MovaError(f"{path}: damaged video: the times of its first pictures step by {step}")
        _refuse_crowded(timeline, first[0], end, path)
        _refuse_off_grid(timeline, end, path)


def _refuse_off_grid(timeline: Timeline, end: Fraction, path: str | Path) -> None:
    late = timeline.off_grid(end)
    if late is not None:
        step = f"{float(1000 * late):+.0f} ms from the grid of its rate"
        raise MovaError(f"{path}: damaged video: the time of its first picture is {step}")


def _refuse_crowded(timeline: Timeline, origin: Fraction, end: Fraction, path: str | Path) -> None:
    crowded = timeline.crowded(end)
    if crowded is not None:
        raise MovaError(
            f"{path}: damaged video: {float(crowded - origin):.3f} s after its first picture two share a time"
        )


def _png_profile(path: str | Path) -> bytes | None:
    """The ICC profile of a video of PNG pictures, by its first picture: PyAV cannot give it."""
    with open_media(path) as container:
        packet = next(container.demux(video_stream(container, path)))
        whole = container.format.name == "apng"
        try:
            with Image.open(path if whole else io.BytesIO(bytes(packet))) as image:
                return image.info.get("icc_profile")
        except Exception:
            return None  # damaged: the decoder will report it


def choose_decoder(stream: VideoStream, path: str | Path) -> VideoCodecContext:
    """The stream's own decoder, or libvpx's for transparent VP8 and VP9: FFmpeg's own decoders ignore WebM's alpha."""
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1":
        return own
    try:
        decoder = cast(VideoCodecContext, CodecContext.create(ALPHA_DECODERS[own.name], "r"))  # both names are video
    except (KeyError, UnknownCodecError):
        warn(path, f"states transparency, which cannot be read of {own.name}, and is shown without")
        return own
    decoder.extradata = own.extradata
    for fact in ("colorspace", "color_range", "color_trc", "color_primaries"):
        setattr(decoder, fact, getattr(own, fact))
    return decoder


def pick_frames(
    frames: Iterator[tuple[Fraction, T | None]], wanted: Sequence[Fraction], reach: Fraction
) -> Iterator[T]:
    """For each of the ascending `wanted` times, yield the frame whose own time is nearest (the earlier of two).

    A frame that begins after the wanted time is chosen only if it begins within `reach`: with a variable frame rate the
    picture on display is the right one, even if the next one is nearer. `frames` ends with (time, None), the time at
    which the last frame leaves the display; later times yield nothing. Nothing is yielded if the first wanted time is
    more than `reach` before the first frame.
    """
    shown_time, shown = next(frames)
    if shown_time - wanted[0] > reach:
        return
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
