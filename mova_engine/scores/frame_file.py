"""Decoded frames in shared memory: one process decodes them, another looks at them, and nothing is copied between.

The planes of each frame lie one after the other in an anonymous file, as the decoder gave them. Its reader maps the
file and makes a frame of the media library again when a picture is asked for, which costs one copy of that picture.
"""

import contextlib
import mmap
import os
import tempfile
from dataclasses import dataclass
from functools import cached_property

import av
import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError

# What of a frame's tags its conversion to RGB depends on.
_TAGS = ("color_range", "colorspace", "color_trc", "color_primaries")


@dataclass(frozen=True)
class StoredFrame:
    """Where a frame's planes lie: (first byte, bytes of a line, lines) of each; pts in the stream's time base."""

    width: int
    height: int
    format: str
    pts: int
    planes: tuple[tuple[int, int, int], ...]
    tags: tuple[int, ...]


class FrameFile:
    """Frames that `append` adds, and that `frame` gives back, in this process or in one that opens `place`."""

    def __init__(self, place: str | None = None) -> None:
        """place: of a file that another process made and keeps; a new one without. MovaError where it cannot be."""
        try:
            if place is not None:
                self._fd = os.open(place, os.O_RDWR)
            elif hasattr(os, "memfd_create"):
                self._fd = os.memfd_create("frames", 0)
            else:
                with tempfile.NamedTemporaryFile(delete=False) as file:
                    self._fd, self._named = os.dup(file.fileno()), file.name
        except OSError as error:
            raise MovaError(f"no memory to hold decoded pictures: {error.strerror}") from None
        self.size = 0

    _named: str | None = None

    @property
    def place(self) -> str:
        """A path by which a process of the same user opens the file."""
        return self._named or f"/proc/{os.getpid()}/fd/{self._fd}"

    def append(self, frame: av.VideoFrame) -> StoredFrame:
        """Write a frame's planes."""
        frame = _from_the_top(frame)
        planes = []
        for plane in frame.planes:
            data = memoryview(plane)
            lines = plane.buffer_size // plane.line_size if plane.line_size else 1
            planes.append((self.size, plane.line_size or plane.buffer_size, lines))
            done = 0
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], self.size + done)
            self.size += len(data)
        tags = tuple(int(getattr(frame, tag)) for tag in _TAGS)
        return StoredFrame(frame.width, frame.height, frame.format.name, frame.pts or 0, tuple(planes), tags)

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.frombuffer(mmap.mmap(self._fd, os.fstat(self._fd).st_size, prot=mmap.PROT_READ), np.uint8)

    def frame(self, stored: StoredFrame) -> av.VideoFrame:
        """A frame with the stored one's pixels and tags."""
        made = av.VideoFrame(stored.width, stored.height, stored.format)
        for plane, (first, stride, lines) in zip(made.planes, stored.planes, strict=True):
            source = self._bytes[first : first + stride * lines].reshape(lines, stride)
            target = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size or plane.buffer_size)
            width, count = min(stride, target.shape[1]), min(lines, len(target))
            target[:count, :width] = source[:count, :width]
        for tag, value in zip(_TAGS, stored.tags, strict=True):
            setattr(made, tag, value)
        return made

    def close(self) -> None:
        """Give the file up in this process; frames that were made of it stay. Once more it does nothing."""
        # Its number may be another file's by then.
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with contextlib.suppress(OSError):
            os.close(fd)
        if self._named:
            with contextlib.suppress(OSError):
                os.unlink(self._named)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


def _from_the_top(frame: av.VideoFrame) -> av.VideoFrame:
    """The frame with its lines in order: some decoders give the last line first, with a negative step."""
    if all(plane.line_size >= 0 for plane in frame.planes):
        return frame
    # To its own format nothing would be converted.
    return frame.reformat(format="rgb24" if frame.format.name != "rgb24" else "bgr24")
