"""What networks read of a clip: pictures at another rate, converted when they are asked for, and its common length."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import overload

import torch
from torch import nn

from mova_engine.scores.decoded_clip import DecodedClip, Pixels
from mova_engine.scores.features.frame_choice import fps_filter, padded


def device_of(network: nn.Module) -> torch.device:
    """The device on which a network's parameters lie."""
    return next(network.parameters()).device


def frame_seconds(clip: DecodedClip) -> Fraction:
    """How long a picture is shown. MovaError without pictures or a frame rate."""
    return 1 / Fraction(clip.fps).limit_denominator(100_000)


def common_seconds(clip: DecodedClip, convention: str) -> Fraction:
    """The seconds that hold both pictures and sound. MovaError for a clip that lacks one of them.

    `mova` leaves out the last tenth and what follows the last whole tenth: of the 8.04 s of 193 pictures at 24 per
    second its published scripts read 7.9 s.
    """
    seen = clip.times[-1] + frame_seconds(clip)
    track = clip.soundtrack
    heard = Fraction(len(track.samples), track.rate)
    if convention == "corrected":
        heard += Fraction(track.start).limit_denominator(1_000_000)
    seconds = max(min(seen, heard), Fraction(0))
    return max(Fraction(math.floor(seconds * 10) - 1, 10), Fraction(0)) if convention == "mova" else seconds


def frames_at(clip: DecodedClip, rate: Fraction, count: int) -> list[int]:
    """`count` frames that ffmpeg's `fps` filter gives at `rate`; the last one is repeated where there are fewer.

    A clip that ends before the filter's first frame gives its middle one.
    """
    chosen = fps_filter(clip.times, rate) or [len(clip.times) // 2]
    return padded(chosen, count)


class ChosenPictures(Sequence[Pixels]):
    """Pictures uint8 [h, w, 3] of a clip by their indices, each converted when it is asked for: none is kept but the
    last one."""

    def __init__(self, clip: DecodedClip, indices: Sequence[int]) -> None:
        self._clip, self._indices = clip, indices
        self._last: tuple[int, Pixels] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenPictures": ...
    def __getitem__(self, index: int | slice) -> "Pixels | ChosenPictures":
        if isinstance(index, slice):
            return ChosenPictures(self._clip, self._indices[index])
        wanted = self._indices[index]
        if self._last is None or self._last[0] != wanted:
            self._last = wanted, next(self._clip.pictures_of([wanted]))
        return self._last[1]
