"""Where decoded clips go: their pictures in parts, as they are made, then their sound."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from mova_engine.data.media.decode import Clip
from mova_engine.errors import MovaError
from mova_engine.inference.requests import Request

Made_co = TypeVar("Made_co", covariant=True)
Made = TypeVar("Made")


class ClipSink(Protocol[Made_co]):
    """Takes one clip, and makes something of it. It is closed at the end, finished or not."""

    def add(self, pictures: np.ndarray) -> None:
        """Take the next pictures, uint8 [n, h, w, 3], all of one clip in their order."""
        raise NotImplementedError

    def finish(self, sound: np.ndarray) -> Made_co:
        """Take the sound, float32 [n], when all pictures are there; return what was made, which can be pickled."""
        raise NotImplementedError

    def close(self) -> None:
        """Give up what is not finished."""
        raise NotImplementedError


# A sink for the clip of a request.
Sinks = Callable[[Request], ClipSink[Made]]


class WholeClip:
    """Keeps a clip's pictures, `frames` of `height` x `width`."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self._pictures, self._count = np.empty((frames, height, width, 3), np.uint8), 0

    def add(self, pictures: np.ndarray) -> None:
        end = self._count + len(pictures)
        if pictures.shape[1:] != self._pictures.shape[1:] or end > len(self._pictures):
            raise MovaError(f"pictures {list(pictures.shape)} do not fit in a clip of {list(self._pictures.shape)}")
        self._pictures[self._count : end] = pictures
        self._count = end

    def finish(self, sound: np.ndarray) -> Clip:
        return Clip(self._pictures[: self._count], sound)

    def close(self) -> None:
        """Nothing is open."""
