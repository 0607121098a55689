"""A sampled clip as its file has it: encoded while it is decoded, so that its pictures are never there as a whole."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.contact_sheet import SheetClip, SheetFrames
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.remux import with_new_sound, with_source_sound
from mova_engine.data.media.spectrogram import spectrogram_frames
from mova_engine.data.media.write import PictureEncoder, encode_wav
from mova_engine.data.text import shown
from mova_engine.inference.requests import Request

# Standard deviation of all pixels, in levels of 255, below which a clip is one solid colour.
SOLID_LEVELS = 4.0
# The contact sheet shows at most this many clips.
SHEET_CLIPS = 24


@dataclass(frozen=True)
class EncodedClip:
    """data: the file. sheet: what a contact sheet shows of it. solid: whether all pictures are of one colour, as of a
    model that has collapsed: none of a picture's pixels is far from the clip's mean.
    """

    data: bytes
    sheet: SheetClip
    solid: bool = False


class ColourSpread:
    """The standard deviation of a clip's pixels by colour, from pictures that come in parts."""

    def __init__(self) -> None:
        self._count, self._sums = 0, np.zeros((2, 3), np.int64)

    def add(self, pictures: np.ndarray) -> None:
        """The next pictures, uint8 [n, h, w, 3]."""
        for picture in pictures:
            values = picture.reshape(-1, 3).astype(np.int64)
            self._sums += values.sum(0), (values * values).sum(0)
            self._count += len(values)

    @property
    def levels(self) -> float:
        """Of the colour that varies most, in levels of 255."""
        mean, square = self._sums / self._count
        return float(np.sqrt(np.maximum(square - mean * mean, 0)).max())


class SampleEncoder:
    """A `ClipSink` that makes an `EncodedClip`.

    shape: of the clips that are made at once. frames: of this one. clips: how many the contact sheet shows. What the
    request gives as a whole, pictures or sound of a file, goes into the clip's file as it is in that one.
    """

    def __init__(self, shape: ClipConfig, frames: int, request: Request, clips: int) -> None:
        self._shape, self._given = shape, request.given
        self._name = f"the clip '{shown(request.caption)}' of seed {request.seed}"
        self._frames = SheetFrames(frames, shape.height, shape.width, clips)
        self._colours = ColourSpread()
        copied = request.given is not None and request.given.copies_pictures(shape)
        self._encoder = None if copied else PictureEncoder(self._name, shape.fps)

    def add(self, pictures: np.ndarray) -> None:
        self._frames.add(pictures)
        self._colours.add(pictures)
        if self._encoder is not None:
            self._encoder.add(pictures)

    def finish(self, sound: np.ndarray) -> EncodedClip:
        fps, rate = self._shape.fps, self._shape.sample_rate
        sheet = self._frames.clip(sound, fps, rate)
        return EncodedClip(self._file(sound), sheet, self._colours.levels < SOLID_LEVELS)

    def _file(self, sound: np.ndarray) -> bytes:
        given, rate = self._given, self._shape.sample_rate
        if self._encoder is None:
            assert given is not None, "pictures are copied from a file that is given"
            return with_new_sound(given.path, sound, rate, name=self._name)
        if given is not None and isinstance(given.source, Path) and given.kind == ("none", "all"):
            return with_source_sound(given.source, self._encoder, self._shape.fps, start=given.start, name=self._name)
        return self._encoder.with_sound(sound, rate)

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()


def sample_encoders(shape: ClipConfig, frames: int, clips: int) -> Callable[[Request], SampleEncoder]:
    """Encoders for the requests of a run that makes `clips` clips of so many frames, otherwise of this shape."""
    return lambda request: SampleEncoder(shape, frames, request, min(clips, SHEET_CLIPS))


def encoded_sound(sound: np.ndarray, shape: ClipConfig) -> EncodedClip:
    """Sound alone, float32 [n], as a wav file."""
    return EncodedClip(encode_wav("sound", sound, shape.sample_rate), shown_clip(Clip(None, sound), shape, 1))


def shown_clip(clip: Clip, shape: ClipConfig, clips: int) -> SheetClip:
    """What a contact sheet of a run of `clips` clips shows of a whole clip; of sound alone its spectrogram."""
    if clip.video is None:
        frames = spectrogram_frames(clip.audio, shape.frames)
        return SheetClip(frames, clip.audio, "", shape.fps, shape.sample_rate)
    kept = SheetFrames(*clip.video.shape[:3], clips=min(clips, SHEET_CLIPS))
    kept.add(clip.video)
    return kept.clip(clip.audio, shape.fps, shape.sample_rate)
