"""The sound of a unit, decoded once: its samples on the clock of the pictures, and when somebody speaks."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mova_engine.data.media.clock import STEP
from mova_engine.data.media.container import PREROLL, Reader, audio_stream, channel_order, open_media
from mova_engine.data.media.downmix import mono_weights
from mova_engine.errors import MovaError
from mova_engine.scores.features.converted_sound import convert_sound
from mova_engine.scores.sound_frames import joined_samples
from mova_engine.scores.speech_activity import RATE as SPEECH_RATE
from mova_engine.scores.speech_activity import SpeechDetector

Interval = tuple[float, float]
Floats = NDArray[np.float32]
# Seconds of sound before the unit that its decoder is given to settle.
_MARGIN = Fraction(1, 10)


@dataclass(frozen=True)
class HeardSound:
    """Samples int16 [n, channels] at `rate` Hz, the first at the unit's start; zeros where the track has none. In 16
    bits ten minutes of stereo are 115 MB. covered: seconds [first, end) of the track's part. fault: why it ends early.
    """

    samples: NDArray[np.int16]
    rate: int
    layout: str
    covered: Interval
    fault: str = ""

    def part(self, start: float, seconds: float) -> NDArray[np.int16]:
        """The samples [m, channels] of `seconds` from `start` on."""
        first = round(start * self.rate)
        return self.samples[first : first + round(seconds * self.rate)]


def hear_sound(path: str | Path, origin: Fraction, start: Fraction, seconds: float) -> HeardSound | None:
    """The sound of `seconds` from `start` seconds after the first picture on, which comes at `origin` on the file's
    clock; None for a file without sound, or without any here. Damage ends it. Raises MovaError for channels of unknown
    places, which cannot be mixed down, and for sound that is damaged from its beginning.
    """
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            return None
        try:
            mono_weights(channel_order(stream))
        except MovaError as error:
            raise MovaError(f"{path}: {error}") from None
        begin = origin + start
        frames = Reader(container, stream, path).frames(begin - _MARGIN, search=start > PREROLL)
        table, rate, layout, covered = None, 0, "", (math.inf, 0.0)
        fault, expected = "", Fraction(0)
        try:
            for time, frame in _until(frames, begin + Fraction(seconds).limit_denominator(1_000_000)):
                if not frame.samples:
                    continue
                if table is None:
                    rate, layout = frame.sample_rate, frame.layout.name
                    count = math.ceil(seconds * rate - 1e-6)
                    table = np.zeros((count, len(frame.layout.channels)), np.int16)
                elif (frame.sample_rate, frame.layout.name) != (rate, layout):
                    fault = f"its sound changes its rate or its channels at {float(time - origin):.3f} s"
                    break
                # Stamps that are rounded must not tear the samples apart: only a step moves them.
                at = time - begin
                if abs(at - expected) > STEP or not expected:
                    expected = at
                covered = _laid(table, frame, round(expected * rate), rate, covered, path)
                expected += Fraction(frame.samples, rate)
        except (MovaError, av.FFmpegError) as error:
            fault = str(error).removeprefix(f"{path}: ")
    if table is None or covered[1] <= covered[0]:
        if fault:
            raise MovaError(f"{path}: {fault}")
        return None
    return HeardSound(table, rate, layout, covered, fault)


def _until(frames: Iterator[tuple[Fraction, av.AudioFrame]], end: Fraction) -> Iterator[tuple[Fraction, av.AudioFrame]]:
    for time, frame in frames:
        if time >= end:
            return
        yield time, frame


def _laid(
    table: NDArray[np.int16], frame: av.AudioFrame, at: int, rate: int, covered: Interval, path: str | Path
) -> Interval:
    """Write a frame's samples from sample `at` on; returns what is covered then."""
    samples: Any = joined_samples([frame], path)
    if samples.dtype != np.int16:
        samples = np.clip(np.rint(np.nan_to_num(samples) * 32768), -32768, 32767).astype(np.int16)
    inside = samples[max(0, -at) : max(0, len(table) - at)]
    first = max(0, at)
    table[first : first + len(inside)] = inside
    if not len(inside):
        return covered
    return min(covered[0], first / rate), max(covered[1], (first + len(inside)) / rate)


def speech_in(sound: HeardSound) -> list[Interval]:
    """Seconds [start, end) after the unit's start in which somebody speaks. MovaError where the network is missing."""
    return _detector().intervals(mono_sound(sound, sound.samples, SPEECH_RATE))


def mono_sound(sound: HeardSound, samples: NDArray[np.int16], rate: int) -> Floats:
    """Some of a sound's samples [n, channels] as the mean of the channels [m] at `rate` Hz, in -1..1."""
    mono = convert_sound(samples, sound.rate, rate, sample_format="flt", source_layout=sound.layout, mean=True)
    return np.ascontiguousarray(mono, np.float32)


@lru_cache(1)
def _detector() -> SpeechDetector:
    return SpeechDetector()
