"""What a request gives of a clip: its pictures, for which sound is made, its sound, or all but a window of time."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip, probe, probe_sound, read_clip
from mova_engine.data.media.remux import check_copied_pictures, check_source_sound
from mova_engine.data.media.stills import is_picture
from mova_engine.errors import MovaError

# Seconds over which kept sound passes into made sound, within the window.
FADE_S = 0.01
# Pictures of a latent frame after the first one.
STRIDE = 4


@dataclass(frozen=True)
class Window:
    """Seconds of a clip, from `begin` up to `end`."""

    begin: float
    end: float

    def check(self, clip: ClipConfig) -> None:
        """MovaError for a window that is not within a clip."""
        if not 0 <= self.begin < self.end <= clip.duration + 0.5 / clip.fps:
            raise MovaError(
                f"a window must lie within the clip's 0 to {clip.duration:.3f} s, got {self.begin:g} to {self.end:g} s"
            )

    @classmethod
    def after(cls, frames: int, clip: ClipConfig) -> "Window":
        """All of a clip but its first `frames` pictures."""
        return cls(frames / clip.fps, clip.duration)


# What is kept of a modality: nothing, all, or all but a window, which is made anew.
Kept = Literal["none", "all"] | Window


@dataclass(frozen=True)
class GivenClip:
    """A clip of which a part is given. source: its file, or its pictures and sound, as `read_clip` gives them; `start`:
    where it begins in the file, in seconds. video, audio: what is kept of each.
    """

    source: Path | Clip
    video: Kept = "none"
    audio: Kept = "none"
    start: float = 0.0

    def __post_init__(self) -> None:
        if self.video == self.audio == "none":
            raise MovaError("nothing of the clip is given: neither pictures nor sound")
        if self.video == self.audio == "all":
            raise MovaError("pictures and sound are both given as a whole: there is nothing to make")

    @classmethod
    def pictures(cls, source: str | Path | np.ndarray) -> "GivenClip":
        """Pictures to make sound for: a video file, or uint8 [f, h, w, 3] of the clip's size."""
        if isinstance(source, np.ndarray):
            return cls(Clip(source, np.zeros(0, np.float32)), video="all")
        return cls(Path(source), video="all")

    @classmethod
    def sound(cls, source: str | Path | np.ndarray) -> "GivenClip":
        """Sound to make pictures for: a sound or video file, or float32 [n], mono, at the clip's sample rate."""
        if isinstance(source, np.ndarray):
            return cls(Clip(None, source), audio="all")
        return cls(Path(source), audio="all")

    @property
    def path(self) -> Path:
        """The source's file. MovaError where there is none."""
        if not isinstance(self.source, Path):
            raise MovaError("the given clip is no file")
        return self.source

    @property
    def kind(self) -> tuple[Kept, Kept]:
        """What the requests of one batch must agree in."""
        return self.video, self.audio

    def read(self, shape: ClipConfig) -> Clip:
        """Pictures uint8 [f, h, w, 3] and sound float32 [n] of `shape`, those that are kept.

        Raises MovaError for a source that cannot be read, or that is too short or silent where its sound is kept.
        """
        if isinstance(self.source, Path):
            self.refuse_picture()
            clip = read_clip(self.source, shape, start=self.start, silent="zeros", pictures=self.video != "none")
            # Where pictures alone are made anew, silence stays.
            if self.audio != "none" and not clip.heard and not self._keeps_silence:
                way_out = "; --retake-of video keeps it silent" if isinstance(self.video, Window) else ""
                raise MovaError(
                    f"{self.source}: has no sound to keep: no sound track, a silent one, or one that covers less than "
                    f"half of the clip's {shape.duration:.3f} s{way_out}"
                )
            return clip
        return Clip(self._pictures(self.source, shape), self._sound(self.source, shape))

    def check(self, shape: ClipConfig) -> None:
        """MovaError for what `read` refuses, for a window that is not within the clip or makes nothing, and for a file
        whose pictures or sound go into the result as they are, and cannot: found out before any weight is loaded, and
        before anything is made.
        """
        for kept, latents in ((self.video, kept_latent_frames), (self.audio, kept_audio_latents)):
            if isinstance(kept, Window):
                kept.check(shape)
                if all(latents(kept, shape)):
                    span = f"{kept.begin:g} to {kept.end:g} s"
                    raise MovaError(f"a window from {span} makes nothing: it is less than one latent frame")
        self.read(shape)
        if self.copies_pictures(shape):
            check_copied_pictures(self.path)
        if isinstance(self.source, Path) and self.kind == ("none", "all"):
            check_source_sound(self.source, self.start)

    def copies_pictures(self, shape: ClipConfig) -> bool:
        """Whether the result has the file's pictures as they are, packet by packet."""
        if not isinstance(self.source, Path) or self.kind != ("all", "none") or self.start:
            return False
        # Of pictures that go on for longer than the clip, the rest would have no sound.
        return probe(self.source).duration < shape.duration + STRIDE / shape.fps

    @property
    def _keeps_silence(self) -> bool:
        return self.audio == "all" and isinstance(self.video, Window)

    def refuse_picture(self) -> None:
        """MovaError for a picture in place of a video."""
        if self.video != "none" and is_picture(self.path):
            what = "sound is made for a video" if self.kind == ("all", "none") else "a window is made anew of a video"
            raise MovaError(f"{self.path}: is a picture; {what}")

    def _pictures(self, clip: Clip, shape: ClipConfig) -> np.ndarray | None:
        if self.video == "none":
            return None
        wanted = (shape.frames, shape.height, shape.width, 3)
        if clip.pictures.shape != wanted or clip.pictures.dtype != np.uint8:
            raise MovaError(
                f"given pictures must be uint8 {list(wanted)}, got {clip.pictures.dtype} {list(clip.pictures.shape)}"
            )
        return clip.pictures

    def _sound(self, clip: Clip, shape: ClipConfig) -> np.ndarray:
        sound = np.zeros(shape.audio_samples, np.float32)
        if self.audio == "none":
            return sound
        least = round(shape.duration * shape.sample_rate)
        if clip.audio.ndim != 1 or len(clip.audio) < least or not np.isfinite(clip.audio).all():
            raise MovaError(
                f"given sound must be float32 [n], mono and finite, of at least {least} samples at "
                f"{shape.sample_rate} Hz, got {clip.audio.dtype} {list(clip.audio.shape)}"
            )
        count = min(len(clip.audio), len(sound))
        sound[:count] = clip.audio[:count]
        return sound


def kept_frames(kept: Kept, shape: ClipConfig) -> tuple[bool, ...]:
    """For each picture of a clip, whether it is kept: whether no part of it is shown in the window. Pictures of one
    latent frame share their fate.
    """
    latents = kept_latent_frames(kept, shape)
    return tuple(latents[-(-frame // STRIDE)] for frame in range(shape.frames))


def kept_latent_frames(kept: Kept, shape: ClipConfig) -> tuple[bool, ...]:
    """For each latent frame, whether it is kept. Latent frame 0 is the first picture, each other one the next 4."""
    spans = [(max(0, STRIDE * i - 3) / shape.fps, (STRIDE * i + 1) / shape.fps) for i in range(shape.latent_shape[0])]
    return _outside(kept, spans)


def kept_audio_latents(kept: Kept, shape: ClipConfig) -> tuple[bool, ...]:
    """For each audio latent, whether it is kept."""
    seconds = shape.audio_samples / shape.audio_tokens / shape.sample_rate
    return _outside(kept, [(i * seconds, (i + 1) * seconds) for i in range(shape.audio_tokens)])


def _outside(kept: Kept, spans: Sequence[tuple[float, float]]) -> tuple[bool, ...]:
    if not isinstance(kept, Window):
        return (kept == "all",) * len(spans)
    # Rounding must not take a span in that ends where the window begins.
    return tuple(end <= kept.begin + 1e-6 or begin >= kept.end - 1e-6 for begin, end in spans)


def with_kept_pictures(
    made: np.ndarray, given: np.ndarray, kept: Kept, shape: ClipConfig, first: int = 0
) -> np.ndarray:
    """The pictures `made` [n, h, w, 3], a clip's from `first` on, with those of `given` [f, h, w, 3] that are kept."""
    span = slice(first, first + len(made))
    where = np.array(kept_frames(kept, shape)[span])
    return np.where(where[:, None, None, None], given[span], made)


def with_kept_sound(made: np.ndarray, given: np.ndarray, kept: Kept, shape: ClipConfig) -> np.ndarray:
    """The sound of a clip [n]: samples of kept latents to the bit, the others faded from and to them within 10 ms."""
    hop = shape.audio_samples // shape.audio_tokens
    keep = np.repeat(np.array(kept_audio_latents(kept, shape), np.float32), hop)[: len(made)]
    # The distance to the nearest kept sample, as a share of the fade's length.
    share = np.minimum(1, _distance(keep > 0) / max(1, round(FADE_S * shape.sample_rate)))
    given = given[: len(made)]
    return np.where(keep > 0, given, share * made + (1 - share) * given).astype(np.float32)


def _distance(kept: np.ndarray) -> np.ndarray:
    """For each sample the number of samples to the nearest kept one."""
    places, index = np.flatnonzero(kept), np.arange(len(kept))
    if not len(places):
        return np.full(len(kept), len(kept), np.float32)
    after = np.searchsorted(places, index).clip(max=len(places) - 1)
    before = (np.searchsorted(places, index, side="right") - 1).clip(min=0)
    return np.minimum(np.abs(places[after] - index), np.abs(places[before] - index)).astype(np.float32)


def fitted_shape(given: GivenClip, shape: ClipConfig, frames_stated: bool) -> tuple[ClipConfig, str | None]:
    """The clip that is made with a file's pictures or sound: `shape`, or, unless its number of frames was stated, the
    longest shorter one that the file fills; and what to say of it.

    Raises MovaError for a video that goes on for longer than a latent frame after the clip: the rest would have no
    sound, or be lost.
    """
    source, pictures = given.path, given.video != "none"
    given.refuse_picture()
    duration = probe(source).duration if pictures else probe_sound(source)
    frames = int(duration * shape.fps + 0.5)
    fitting = max(1, (frames - 1) // STRIDE * STRIDE + 1)
    if frames >= shape.frames + STRIDE:
        if pictures:
            rest = "have no sound" if given.audio == "none" else "be lost"
            raise MovaError(
                f"{source} lasts {duration:.3f} s, the clip {shape.duration:.3f} s: the rest would {rest}. Cut it, or "
                f"give --clip.frames {fitting}"
            )
        return shape, f"{source} lasts {duration:.3f} s: its first {shape.duration:.3f} s are used"
    if frames >= shape.frames or frames_stated:
        return shape, None
    fitted = replace(shape, frames=fitting)
    said = f"{source} lasts {duration:.3f} s: the clip has {fitting} frames instead of {shape.frames}"
    return fitted, said
