"""Deinterlacing: one whole picture for each interlaced frame, at the time of its first field."""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph
from av.video.frame import VideoFrame

from mova_engine.errors import MovaError

TAGS = ("colorspace", "color_range", "color_trc", "color_primaries")


def deinterlace(
    frames: Iterator[tuple[Fraction, VideoFrame]], path: str | Path, codec: str = ""
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Yield the frames with their times; in interlaced frames the second field is replaced (FFmpeg's bwdif).

    Progressive frames pass unchanged, also between interlaced ones. Raises MovaError for interlaced HEVC (`codec`),
    whose pictures are single fields of half the height.
    """
    filtered, waiting = None, deque()
    shape = None
    for time, frame in frames:
        if frame.interlaced_frame and codec == "hevc":
            raise MovaError(
                f"{path}: is HEVC with a picture for each field, which cannot be read; deinterlace it first"
            )
        if filtered is not None and (frame.format.name, frame.width, frame.height) != shape:
            yield from _pull(filtered, waiting, None)
            filtered = None
        if filtered is None:
            if not frame.interlaced_frame:
                yield time, frame
                continue
            filtered, shape = _filter(frame), (frame.format.name, frame.width, frame.height)
        waiting.append((time, frame))
        yield from _pull(filtered, waiting, frame)
    if filtered is not None:
        yield from _pull(filtered, waiting, None)


def _filter(frame: VideoFrame) -> Graph:
    graph = Graph()
    graph.threads = 1  # for the same reason as the decoder
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    fields = graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced")
    sink = graph.add("buffersink")
    source.link_to(fields)
    fields.link_to(sink)
    graph.configure()
    return graph


def _pull(
    graph: Graph, waiting: deque[tuple[Fraction, VideoFrame]], frame: VideoFrame | None
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Push a frame into the filter (None: the end) and yield its finished frames, one for each pushed, in order."""
    graph.vpush(frame)
    while waiting:
        try:
            made = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        time, source = waiting.popleft()
        # The filter works on planar formats only; a conversion to one may lose these tags.
        for tag in TAGS:
            setattr(made, tag, getattr(source, tag))
        yield time, made if source.interlaced_frame else source
