"""Reads a part of a film as a clip: its pictures, of which a rectangle may be cut out, and its sound to the sample.

Times are those of `data.media.decode.read_clip`: seconds after the first picture, by the timestamps of the file. The
pictures are all that it could choose for a clip that begins and ends where the window does.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from av.video.stream import VideoStream

from mova_engine.data.clip_edit import Crop
from mova_engine.data.media.clock import find_runs
from mova_engine.data.media.container import PREROLL, Reader, audio_stream, channel_order, video_stream
from mova_engine.data.media.orientation import turn_upright
from mova_engine.data.media.pictures import open_pictures
from mova_engine.data.media.timeline import known_times
from mova_engine.errors import MovaError
from mova_engine.scores.sound_frames import Soundtrack, joined_samples

# A picture that begins so many seconds after a wanted time is taken for it where it is nearer than the one on display:
# half the time of a picture of MOVA's clips, see `pictures.pick_frames`.
REACH = Fraction(1, 48)
# Seconds of sound around a window by which its samples are placed, and in which damage is the window's.
AROUND, MARGIN = Fraction(1), Fraction(1, 10)


def window_pictures(
    container: InputContainer, path: str | Path, start: Fraction, seconds: Fraction | None
) -> tuple[Fraction, Iterator[tuple[Fraction, av.VideoFrame]]]:
    """The window's start on the container's clock, and the pictures from there on, for `seconds` or to the file's end:
    each with its time from the start; the first has 0, as it is on display then.

    The iterator raises MovaError for damage within the window, and where no picture is on display at its start.
    """
    reader, origin, _ = open_pictures(container, path)
    stream, begin = video_stream(container, path), origin + start
    frames = known_times(reader.frames(begin, search=start > PREROLL), container, stream, path)
    return begin, _chosen(((time - begin, frame) for time, frame in frames), stream, path, start, seconds)


def _chosen(
    frames: Iterator[tuple[Fraction, av.VideoFrame]],
    stream: VideoStream,
    path: str | Path,
    start: Fraction,
    seconds: Fraction | None,
) -> Iterator[tuple[Fraction, av.VideoFrame]]:
    shown, following = next(frames, None), next(frames, None)
    while shown and following and (following[0] <= 0 or following[0] < min(-shown[0], REACH)):
        shown, following = following, next(frames, None)
    stays = 1 / stream.average_rate if stream.average_rate else REACH
    if shown is None or shown[0] > REACH or (following is None and shown[0] + stays <= 0):
        raise MovaError(f"{path}: no picture is on display {float(start):g} s after the first")
    yield Fraction(0), shown[1]
    while following and (seconds is None or following[0] < seconds - REACH):
        yield following
        following = next(frames, None)


def window_sound(
    container: InputContainer, path: str | Path, begin: Fraction, start: Fraction, seconds: Fraction | None
) -> Soundtrack | None:
    """The sound of a window that begins at `begin` on the container's clock, `start` seconds after the first picture,
    for `seconds` or to the file's end; None where the file has none then. It is cut to the sample; gaps are zeros.

    Raises MovaError for damage within the window, and for timestamps that do not fit the samples.
    """
    stream = audio_stream(container)
    if stream is None:
        return None
    channel_order(stream)
    end = None if seconds is None else begin + seconds
    frames: list[av.AudioFrame] = []
    times: list[Fraction] = []
    sound = Reader(container, stream, path).frames(begin - MARGIN, search=start > PREROLL)
    last = begin
    while True:
        try:
            last, frame = next(sound)
        except StopIteration:
            break
        except (MovaError, av.FFmpegError):
            if end is not None and last >= end + MARGIN:
                break
            raise
        if end is not None and last >= end + AROUND:
            break
        if frame.samples and last + Fraction(frame.samples, frame.sample_rate) > begin - AROUND:
            frames.append(frame)
            times.append(last - begin)
    return _placed(times, frames, path, seconds) if frames else None


def _placed(
    times: Sequence[Fraction], frames: Sequence[av.AudioFrame], path: str | Path, seconds: Fraction | None
) -> Soundtrack | None:
    """The samples of frames that begin at these times after the window's start, within the window."""
    samples = joined_samples(frames, path)
    rate, borders = frames[0].sample_rate, np.cumsum([0, *(frame.samples for frame in frames)])
    try:
        runs = find_runs(np.array([float(time) for time in times]), np.diff(borders) / rate)
    except MovaError as error:
        raise MovaError(f"{path}: {error}") from None
    parts = [(round(run.times[0] * rate), samples[borders[run.first] : borders[run.last]]) for run in runs]
    first = max(0, min(at for at, _ in parts))
    last = max(at + len(part) for at, part in parts)
    last = last if seconds is None else min(last, math.ceil(seconds * rate))
    if last <= first:
        return None
    table: Any = np.zeros((last - first, samples.shape[1]), samples.dtype)
    for at, part in parts:
        inside = part[max(0, first - at) : max(0, last - at)]
        table[max(0, at - first) : max(0, at - first) + len(inside)] = inside
    return Soundtrack(table, rate, frames[0].layout.name, first / rate)


class Cropper:
    """Cuts a rectangle of upright pictures with square pixels out of frames as they are stored."""

    def __init__(self, crop: Crop, frame: av.VideoFrame, orientation: int, pixel_aspect: float) -> None:
        """orientation: EXIF's number. pixel_aspect: width / height of a stored pixel. MovaError for a rectangle that
        is not within the picture.
        """
        left, top, right, bottom = stored_box(crop, (frame.height, frame.width), orientation, pixel_aspect)
        self._graph = Graph()
        self._graph.threads = 1
        base = frame.time_base or Fraction(1)
        source = self._graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
        # `copy`: else the cut frame's lines lie within the whole one's, and its memory ends beyond that.
        cut = self._graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
        self._graph.link_nodes(source, cut, self._graph.add("copy"), self._graph.add("buffersink")).configure()

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The rectangle, with the frame's time and tags."""
        self._graph.vpush(frame)
        return self._graph.vpull()


def stored_box(crop: Crop, size: tuple[int, int], orientation: int, pixel_aspect: float) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of `crop` in a stored picture of this height and width."""
    height, width = size
    shown = max(1, round(width * pixel_aspect))
    # Of each pixel of the upright picture its place in the stored one: views that hold nothing.
    rows = turn_upright(np.broadcast_to(np.arange(height)[:, None], (height, shown)), orientation)
    columns = turn_upright(np.broadcast_to(np.arange(shown), (height, shown)), orientation)
    x, y, crop_width, crop_height = crop
    if min(x, y) < 0 or min(crop_width, crop_height) < 1 or (y + crop_height, x + crop_width) > rows.shape:
        raise MovaError(f"a crop of {crop} is not within pictures of {rows.shape[1]}x{rows.shape[0]}")
    corners = [(y, x), (y + crop_height - 1, x + crop_width - 1)]
    top, bottom = sorted(int(rows[corner]) for corner in corners)
    left, right = sorted(int(columns[corner]) for corner in corners)
    left, right = round(left / pixel_aspect), round((right + 1) / pixel_aspect)
    return left, top, max(right, left + 1), bottom + 1
