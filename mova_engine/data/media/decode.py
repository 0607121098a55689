"""Decodes media files to clips: pictures at the model's frame rate, sound at its sample rate, both on one clock.

The clock starts at the presentation time of the first picture (plus `start`), or without pictures at that of the first
sample. Pictures and sound are placed on it by their timestamps, not by counting: they stay in step for any frame rate,
constant or variable, and if the streams start at different times.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.media.container import audio_stream, open_media, video_stream
from mova_engine.data.media.pictures import declared_duration, read_pictures, shown_size
from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.data.media.sound import Sound, first_sound, read_sound
from mova_engine.data.metadata import LATEST_START
from mova_engine.errors import MovaError

Silent = Literal["refuse", "zeros", "mask"]

# A clip whose sound covers less than this share counts as silent; players play a late or short track as silence.
LEAST_SOUND = 0.5


@dataclass(frozen=True)
class Clip:
    """A decoded clip. video: uint8 [f, h, w, 3], RGB; None if pictures were not requested. audio: float32 [n], mono.

    Picture k is that at k / fps seconds, sample i that at i / sample_rate seconds. heard: whether the file has sound
    here, so that a model may be trained on `audio`.
    """

    video: np.ndarray | None
    audio: np.ndarray
    heard: bool = True

    @property
    def pictures(self) -> np.ndarray:
        """`video`. Raises MovaError if the clip was read without pictures."""
        if self.video is None:
            raise MovaError("the clip was read without its pictures")
        return self.video


@dataclass(frozen=True)
class MediaInfo:
    """What a file declares about itself. duration: of the video, in seconds. sample_rate: in Hz, 0 without sound."""

    width: int
    height: int
    fps: float
    duration: float
    sample_rate: int


@in_reader_process
def probe(path: str | Path) -> MediaInfo:
    """Read what a file declares, without decoding it. Raises MovaError if it is missing, unreadable or has no video."""
    with open_media(path) as container:
        video, sound = video_stream(container, path), audio_stream(container)
        length = declared_duration(video) or Fraction(container.duration or 0, av.time_base)
        return MediaInfo(
            width=video.codec_context.width,
            height=video.codec_context.height,
            fps=float(video.average_rate or 0),
            duration=float(length),
            sample_rate=sound.codec_context.sample_rate if sound else 0,
        )


@in_reader_process
def probe_shown(path: str | Path) -> tuple[int, int, float]:
    """(width, height, seconds) of a file's pictures as they are shown, upright and with square pixels: what `read_clip`
    crops. The first picture alone is decoded. Raises MovaError as `probe`.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        length = declared_duration(stream) or Fraction(container.duration or 0, av.time_base)
        return *shown_size(container, path), float(length)


@in_reader_process
def probe_sound(path: str | Path) -> float:
    """The seconds that a file's sound lasts, as the file declares it. Raises MovaError if it has none."""
    with open_media(path, pictures=False) as container:
        stream = audio_stream(container)
        unit = None if stream is None else stream.time_base
        length = 0 if stream is None or unit is None else (stream.duration or 0) * unit
        return float(length or Fraction(container.duration or 0, av.time_base))


@in_reader_process
def read_clip(
    path: str | Path,
    clip: ClipConfig,
    *,
    start: float = 0.0,
    silent: Silent = "refuse",
    pictures: bool = True,
    edit: ClipEdit = NO_EDIT,
) -> Clip:
    """Decode `clip.frames` pictures and `clip.audio_samples` samples, from `start` seconds after the first picture.

    Pictures: chosen by `pick_frames`, centre-cropped and resized by `crop_resize`.
    Sound: resampled to `clip.sample_rate` and mixed down to mono. Sound before the start is cut; where the track starts
    late or ends early there are zeros. The samples after `clip.duration`, up to whole latents, are the sound that
    follows in the file: zeros there would put a click into the last latent.

    edit: pictures are cropped and padded before all else; sound is moved by the nearest number of samples, and other
    sound of the file moves in; where a gain takes it beyond full scale, the clip's whole sound is scaled down to that.
    silent: how to treat a clip without sound (no track, a silent one, or one that covers less than half the clip).
    "refuse": raise MovaError. "zeros" and "mask": return the sound that there is, zeros elsewhere, with heard=False.
    pictures=False: only the sound, from `start` seconds after its first sample; the file needs no video.
    Raises MovaError, naming the file, if it is missing, damaged, too short, or lacks video or sound. The file is
    decoded in a separate process; if that crashes, hangs or runs out of memory, MovaError is raised as well.
    """
    if silent not in get_args(Silent):
        raise MovaError(f"silent must be one of {', '.join(get_args(Silent))}, got '{silent}'")
    if not 0 <= start <= LATEST_START:
        raise MovaError(f"{path}: start must be seconds from 0 to 1e9, got {start}")
    offset, video, sound = Fraction(start).limit_denominator(1_000_000), None, None
    with open_media(path, pictures=pictures) as container:
        if pictures:
            origin, video = read_pictures(container, path, clip, offset, edit)
        else:
            origin = first_sound(container, path)
    with open_media(path, pictures=pictures) as container:
        if audio_stream(container) is not None:
            moved = Fraction(round(edit.sound_shift * clip.sample_rate), clip.sample_rate)
            sound = read_sound(container, path, clip, offset - moved, origin)
    missing = _missing(sound, clip)
    if missing and silent == "refuse":
        also = " or mask" if pictures else ""
        raise MovaError(f"{path}: {missing} (--loader.silent-audio zeros{also} accepts it)")
    if not pictures and (sound is None or not sound.covered):
        raise MovaError(f"{path}: too short: its sound ends before {start:g} s")
    audio = np.zeros(clip.audio_samples, np.float32) if sound is None else _louder(sound.mono, edit.gain_db)
    return Clip(video, audio, heard=missing is None)


def _louder(audio: np.ndarray, gain_db: float) -> np.ndarray:
    """Sound float32 [n] by a gain, scaled down to full scale where it goes beyond."""
    if not gain_db:
        return audio
    audio = audio * np.float32(10 ** (gain_db / 20))
    peak = np.abs(audio).max(initial=0)
    return audio / peak if peak > 1 else audio


def _missing(sound: Sound | None, clip: ClipConfig) -> str | None:
    """Why a clip counts as silent; None if it does not."""
    if sound is None:
        return "has no sound track"
    if sound.covered < LEAST_SOUND * clip.audio_samples:
        return f"its sound covers only {sound.covered / clip.sample_rate:.3f} s of the clip's {clip.duration:.3f} s"
    return "its sound track is silent" if sound.silent else None
