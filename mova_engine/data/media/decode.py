"""Real files to clips: pictures at the model's frame rate, sound at its sample rate, both on one clock.

The clock starts at the presentation time of the first picture (plus `start`); where no pictures are wanted, at that of
the first sample. Pictures and sound are placed on it by their timestamps, never by counting, so that a file of any
frame rate, constant or variable, whose streams start at different times, comes out in step.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args

import av
import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.container import audio_stream, open_media, video_stream
from mova_engine.data.media.pictures import read_pictures
from mova_engine.data.media.reader_process import apart
from mova_engine.data.media.sound import Sound, first_sound, read_sound
from mova_engine.data.metadata import LATEST_START
from mova_engine.errors import MovaError

Silent = Literal["refuse", "zeros", "mask"]

# A player would show a late or short track as silence; a clip with less than half its sound counts as silent.
LEAST_SOUND = 0.5


@dataclass(frozen=True)
class Clip:
    """Pictures uint8 [f, h, w, 3] (RGB; None: not asked for) and sound float32 [n] (mono) in step.

    Picture k shows the instant k / fps, sample i sounds at i / sample_rate. heard: whether the file has sound here, so
    that `audio` is to be learned.
    """

    video: np.ndarray | None
    audio: np.ndarray
    heard: bool = True

    @property
    def pictures(self) -> np.ndarray:
        """`video` where it was asked for. MovaError where it was not."""
        if self.video is None:
            raise MovaError("the clip was read without its pictures")
        return self.video


@dataclass(frozen=True)
class MediaInfo:
    """What a file declares. `duration` is of the pictures, in seconds; `sample_rate` is 0 where there is no sound."""

    width: int
    height: int
    fps: float
    duration: float
    sample_rate: int


@apart
def probe(path: str | Path) -> MediaInfo:
    """Read what a file declares, without decoding it. MovaError when it is missing, unreadable or has no video."""
    with open_media(path) as container:
        video, sound = video_stream(container, path), audio_stream(container)
        length = video.duration * video.time_base if video.duration else Fraction(container.duration or 0, av.time_base)
        return MediaInfo(
            width=video.codec_context.width,
            height=video.codec_context.height,
            fps=float(video.average_rate or 0),
            duration=float(length),
            sample_rate=sound.codec_context.sample_rate if sound else 0,
        )


@apart
def read_clip(
    path: str | Path, clip: ClipConfig, *, start: float = 0.0, silent: Silent = "refuse", pictures: bool = True
) -> Clip:
    """Decode `clip.frames` pictures and `clip.audio_samples` samples, from `start` seconds after the first picture.

    Pictures: each is the source picture chosen by `pick_frames`, centre-cropped and resized by `crop_resize`.
    Sound: resampled to `clip.sample_rate`, mixed down to mono. Sound before the clock's zero is cut; where the track is
    late or ends early there are zeros. The samples beyond `clip.duration`, up to whole latents, are the sound that
    follows in the file: a cut to zeros would put a click into the last latent.

    silent: what to do with a file without sound (no track, a silent one, or one that covers less than half the clip):
    "refuse" raises, "zeros" gives what there is, zeros elsewhere, and so does "mask"; the clip then says that it is not
    heard. A clip of which the sound covers half or more counts as heard.
    pictures=False: the sound alone, from `start` seconds after its first sample. Files without video will do.
    Raises MovaError, naming the file, when it is missing, damaged, without what is asked for, too short or silent. The
    file is decoded in a process of its own: where that crashes, hangs or takes all memory, that is a MovaError too.
    """
    if silent not in get_args(Silent):
        raise MovaError(f"silent must be one of {', '.join(get_args(Silent))}, got '{silent}'")
    if not 0 <= start <= LATEST_START:
        raise MovaError(f"{path}: start must be seconds from 0 to 1e9, got {start}")
    offset, video, sound = Fraction(start).limit_denominator(1_000_000), None, None
    with open_media(path, pictures=pictures) as container:
        if pictures:
            origin, video = read_pictures(container, path, clip, offset)
        else:
            origin = first_sound(container, path)
    with open_media(path, pictures=pictures) as container:
        if audio_stream(container) is not None:
            sound = read_sound(container, path, clip, offset, origin)
    missing = _missing(sound, clip)
    if missing and silent == "refuse":
        also = " or mask" if pictures else ""
        raise MovaError(f"{path}: {missing} (--loader.silent-audio zeros{also} accepts it)")
    if not pictures and not sound.covered:
        raise MovaError(f"{path}: too short: its sound ends before {start:g} s")
    audio = np.zeros(clip.audio_samples, np.float32) if sound is None else sound.mono
    return Clip(video, audio, heard=missing is None)


def _missing(sound: Sound | None, clip: ClipConfig) -> str | None:
    """Why a clip counts as silent; None where it does not."""
    if sound is None:
        return "has no sound track"
    if sound.covered < LEAST_SOUND * clip.audio_samples:
        return f"its sound covers only {sound.covered / clip.sample_rate:.3f} s of the clip's {clip.duration:.3f} s"
    return "its sound track is silent" if sound.silent else None
