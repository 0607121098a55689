"""A media file, decoded once for all scores: pictures and sound as the decoders give them, and views of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from mova_engine.data.clip_edit import Crop
from mova_engine.data.media.container import audio_stream, open_media, video_stream
from mova_engine.data.media.frames import frame_orientation
from mova_engine.data.media.orientation import UPRIGHT, swaps_sides, turn_upright
from mova_engine.errors import MovaError
from mova_engine.scores.clip_window import Cropper, window_pictures, window_sound
from mova_engine.scores.features.converted_sound import Format, convert_sound, unit_floats
from mova_engine.scores.features.kept_sounds import KeptSounds
from mova_engine.scores.frame_file import FrameFile, StoredFrame
from mova_engine.scores.sound_frames import Soundtrack, joined_samples

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]
# Bytes of decoded pictures: 8 s of 720p are 270 MB. Longer material is cut into clips first.
MOST_BYTES = 4 << 30
# Pixels of the small pictures, about, which several scores look at.
SMALL_AREA = 144 * 256


@dataclass(frozen=True)
class Measured:
    """Numbers, and what they were computed from, for a set's chance levels and own numbers.

    evidence: what JSON knows, and NumPy arrays within it. reason: why numbers are missing, where some of them are.
    """

    values: dict[str, float]
    evidence: Any
    reason: str = ""


class DecodedClip:
    """A file's frames and sound, decoded once. Either may be missing; what needs it then says so in a MovaError.

    Its methods may be called from several threads. `DecodedClip.read` decodes in this process, `clip_reader.read_clip`
    in another, so that no file can end this one.
    """

    def __init__(self, path: str | Path, store: FrameFile, time_base: Fraction, fps: float) -> None:
        self.path = Path(path)
        self._store = store
        self._frames: list[StoredFrame] = []
        self._time_base = time_base
        self._fps = fps
        self._turned: int | str = UPRIGHT  # EXIF's number, or why there is none
        self._sound: Soundtrack | None = None
        self._sounds = KeptSounds()

    @classmethod
    def read(
        cls,
        path: str | Path,
        store: FrameFile | None = None,
        *,
        start: float | Fraction = 0,
        seconds: float | Fraction | None = None,
        crop: Crop | None = None,
    ) -> "DecodedClip":
        """Decode a file; its frames go to `store`, a new one without.

        start, seconds: the part of a film that is the clip, in seconds after the first picture, as `read_clip` of
        data.media has it; its pictures' times count from `start`, its sound is cut to the sample. seconds None: to the
        end. crop: x, y, width, height of what is kept of the pictures, in upright ones with square pixels.

        MovaError where the file is missing, damaged, holds neither pictures nor sound, or is too long; of a part, where
        the film has no picture at its start.
        """
        begin, length = (None if x is None else Fraction(x).limit_denominator(1_000_000) for x in (start, seconds))
        if begin or length is not None or crop is not None:
            return cls._read_part(path, store, begin or Fraction(0), length, crop)
        moving = _has_pictures(path)
        with open_media(path, pictures=moving) as container:
            stream = video_stream(container, path) if moving else None
            sound = audio_stream(container)
            clip = cls._of(stream, path, store)
            parts: list[av.AudioFrame] = []
            wanted = [each for each in (stream, sound) if each is not None]
            for frame in (frame for packet in container.demux(wanted) for frame in packet.decode()):
                if isinstance(frame, av.VideoFrame):
                    clip._add(frame, stream)
                elif isinstance(frame, av.AudioFrame):
                    parts.append(frame)
            clip._sound = _joined(parts, clip.first_time, path) if parts else None
        if not clip._frames and clip._sound is None:
            raise MovaError(f"{path}: neither a picture nor a sample can be decoded")
        return clip

    @classmethod
    def _read_part(
        cls, path: str | Path, store: FrameFile | None, start: Fraction, seconds: Fraction | None, crop: Crop | None
    ) -> "DecodedClip":
        with open_media(path) as container:
            stream = video_stream(container, path)
            clip = cls._of(stream, path, store)
            begin, pictures = window_pictures(container, path, start, seconds)
            times, cropper = [], None
            for time, frame in pictures:
                times.append(time)
                if crop is not None and cropper is None:
                    turned = frame_orientation(frame, path, stream.codec_context.name)
                    cropper = Cropper(crop, frame, turned, float(stream.sample_aspect_ratio or 1))
                clip._add(frame, stream, cropper)
            clip.times = times
        with open_media(path) as container:
            clip._sound = window_sound(container, path, begin, start, seconds)
        return clip

    @classmethod
    def _of(cls, stream: VideoStream | None, path: str | Path, store: FrameFile | None) -> "DecodedClip":
        base = Fraction(stream.time_base or 1) if stream else Fraction(1)
        return cls(path, store or FrameFile(), base, float(stream.average_rate or 0) if stream else 0.0)

    def _add(self, frame: av.VideoFrame, stream: VideoStream | None, cropper: Cropper | None = None) -> None:
        if not self._frames:
            self._turned = _orientation(frame, self.path, stream.codec_context.name if stream else "")
        self._frames.append(self._store.append(cropper(frame) if cropper else frame))
        if self._store.size > MOST_BYTES:
            raise MovaError(f"{self.path}: more than {MOST_BYTES >> 30} GiB of pictures; scores measure clips: cut it")

    @property
    def first_time(self) -> Fraction | None:
        """Presentation time of the first picture in the file, in seconds."""
        return self._time(self._frames[0]) if self._frames else None

    def moved(self, store: FrameFile) -> "DecodedClip":
        """This clip, whose frames are read from `store` from now on: the same file in another process."""
        self._store = store
        return self

    def __getstate__(self) -> dict[str, Any]:
        """All but the frames' memory, which does not go from process to process."""
        return {name: value for name, value in self.__dict__.items() if name != "_store"}

    def _time(self, frame: StoredFrame) -> Fraction:
        return frame.pts * self._time_base

    @cached_property
    def times(self) -> list[Fraction]:
        """When each picture comes, in seconds from the first. Raises MovaError without pictures."""
        first = self.first_time
        if first is None:
            raise MovaError("there are no pictures")
        return [self._time(frame) - first for frame in self._frames]

    @property
    def fps(self) -> float:
        """Pictures a second, as the file states it. Raises MovaError without pictures."""
        if not self._frames:
            raise MovaError("there are no pictures")
        if not self._fps:
            raise MovaError("the file states no frame rate")
        return self._fps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures as players show them, turned upright."""
        if not self._frames:
            raise MovaError("there are no pictures")
        height, width = self._frames[0].height, self._frames[0].width
        return (width, height) if swaps_sides(self._orientation) else (height, width)

    @property
    def _orientation(self) -> int:
        """Of the first picture, EXIF's number. Raises MovaError for what is no quarter turn."""
        if isinstance(self._turned, str):
            raise MovaError(self._turned)
        return self._turned

    def _upright(self, i: int, height: int | None = None, width: int | None = None, way: str = "AREA") -> Pixels:
        """Picture i. height, width: of the upright picture, else its own. way: how swscale makes it that size."""
        if swaps_sides(self._orientation):
            height, width = width, height
        frame = self._store.frame(self._frames[i])
        pixels = frame.to_ndarray(
            format="rgb24", width=width, height=height, interpolation=None if height is None else way
        )
        return np.ascontiguousarray(turn_upright(pixels, self._orientation), np.uint8)

    def pictures_of(self, indices: Sequence[int]) -> Iterator[Pixels]:
        """The pictures of these indices one after the other, upright, at their own size, uint8 [h, w, 3], RGB."""
        for i in indices:
            yield self._upright(i)

    def pictures_in(self, height: int, width: int, way: str = "BICUBIC") -> Pixels:
        """All upright pictures uint8 [f, height, width, 3], RGB, made that size by swscale's `way`."""
        return np.stack([self._upright(i, height, width, way) for i in range(len(self.times))])

    @cached_property
    def small_pictures(self) -> Pixels:
        """All upright pictures uint8 [f, h, w, 3], RGB, of about SMALL_AREA pixels, sides multiples of 16."""
        height, width = self.size
        scale = (SMALL_AREA / (height * width)) ** 0.5
        sides = [max(16, 16 * round(side * scale / 16)) for side in (height, width)]
        return self.pictures_in(sides[0], sides[1], "AREA")

    def shown_at(self, fps: float) -> NDArray[np.intp]:
        """Of k / fps seconds, k = 0, 1, .., to the end: the number of the picture that is shown then."""
        times = np.array([float(time) for time in self.times])
        last = times[-1] + 1 / self.fps
        at = np.arange(max(1, int(last * fps + 1e-6))) / fps
        return np.searchsorted(times, at + 1e-6, side="right") - 1

    def pictures_at(self, fps: float, height: int, width: int) -> Pixels:
        """Upright pictures uint8 [f, height, width, 3] at k / fps seconds, each the one that is shown then."""
        chosen = self.shown_at(fps)
        shown = {int(i): self._upright(i, height, width) for i in np.unique(chosen)}
        return np.stack([shown[int(i)] for i in chosen])

    @cached_property
    def soundtrack(self) -> Soundtrack:
        """The sound as it is. Raises MovaError for a file without, and for samples that are no numbers."""
        if self._sound is None:
            raise MovaError("there is no sound")
        if not np.isfinite(self._sound.samples).all():
            raise MovaError("the sound has samples that are no numbers (NaN or infinite)")
        return self._sound

    def sound(
        self,
        rate: int,
        channels: Literal["mono", "stereo"] = "mono",
        sample_format: Format = "flt",
        *,
        mean: bool = True,
    ) -> NDArray[np.int16] | Floats:
        """The whole track [n] or [n, 2] at `rate`, as the ffmpeg program gives it; read-only, as scores share it.

        mean: float mono is the channels' mean, at their own level; without, ffmpeg's sum (`convert_sound`).
        """
        track = self.soundtrack
        return self._sounds.get(
            (rate, channels, sample_format, mean),
            lambda: convert_sound(
                track.samples,
                track.rate,
                rate,
                channels=channels,
                sample_format=sample_format,
                source_layout=track.layout,
                mean=mean and (channels, sample_format) == ("mono", "flt"),
            ),
        )

    def channels(self) -> Floats:
        """The track as it is: float32 [channels, n] in -1..1 at its own rate, a copy."""
        samples = self.soundtrack.samples
        floats = unit_floats(np.asarray(samples, np.int16)) if samples.dtype == np.int16 else samples.astype(np.float32)
        return np.ascontiguousarray(floats.T)

    def sound_with_pictures(self, rate: int, sample_format: Format = "flt") -> NDArray[np.int16] | Floats:
        """Mono sound [n] at `rate` from the first picture on: silence before a late start, an early one cut."""
        return placed(self.sound(rate, sample_format=sample_format), round(self.soundtrack.start * rate))


def placed(sound: NDArray[Any], late: int) -> NDArray[Any]:
    """Sound [..., n] that begins `late` samples after the pictures, from the first picture on."""
    if late < 0:
        return sound[..., -late:]
    return np.concatenate([np.zeros((*sound.shape[:-1], late), sound.dtype), sound], -1)


def _orientation(frame: av.VideoFrame, path: str | Path, codec: str) -> int | str:
    try:
        return frame_orientation(frame, path, codec)
    except MovaError as error:
        return str(error)


def _has_pictures(path: str | Path) -> bool:
    """Whether a file has moving pictures; one without may still have sound."""
    try:
        with open_media(path):
            return True
    except MovaError:
        return False


def _joined(parts: list[av.AudioFrame], first_picture: Fraction | None, path: str | Path) -> Soundtrack:
    first = parts[0]
    start = Fraction(first.pts or 0) * Fraction(first.time_base or 1) - (first_picture or 0)
    return Soundtrack(joined_samples(parts, path), first.sample_rate, first.layout.name, float(start))
