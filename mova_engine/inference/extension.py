"""Clips longer than the model's: window after window, each of which continues the one before.

The last frames of a window and their sound begin the next one: they are given, and the rest is made (`GivenClip`). In
the result they are those of the earlier window, to the bit, sound up to its last whole latent; from there it fades into
what follows within 10 ms.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Generic, cast

import numpy as np

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip
from mova_engine.errors import MovaError
from mova_engine.inference.clip_sinks import ClipSink, Made, Sinks
from mova_engine.inference.denoising import Step
from mova_engine.inference.given_clip import FADE_S, STRIDE, GivenClip, Window, kept_audio_latents
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import MAX_SEED, Request
from mova_engine.inference.sample_settings import SampleSettings


@dataclass(frozen=True)
class Extension:
    """How long clips become. frames: of the whole clip. overlap: frames that two windows share, 4n+1. shape: of a
    window. Raises MovaError for numbers that do not go together.
    """

    shape: ClipConfig
    frames: int
    overlap: int

    def __post_init__(self) -> None:
        if self.frames <= self.shape.frames:
            raise MovaError(
                f"a clip of {self.frames} frames needs no extension: the model makes {self.shape.frames} at once; "
                "give --clip.frames"
            )
        if self.overlap % STRIDE != 1 or not 1 <= self.overlap < self.shape.frames:
            raise MovaError(f"windows must share 4n+1 frames, fewer than their {self.shape.frames}, got {self.overlap}")

    @classmethod
    def of(cls, shape: ClipConfig, seconds: float, overlap: int | None) -> "Extension":
        """For a length in seconds. overlap: None: about a quarter of a window."""
        if overlap is None:
            overlap = shape.frames // (4 * STRIDE) * STRIDE + 1
        return cls(shape, round(seconds * shape.fps), overlap)

    @property
    def step(self) -> int:
        """Frames by which a window is later than the one before."""
        return self.shape.frames - self.overlap

    def windows(self, given: int = 0) -> int:
        """How many windows are made. given: frames that there are already."""
        there = max(given, 0)
        first = 1 if not there else 0
        length = self.shape.frames if first else there
        return first + max(0, math.ceil((self.frames - length) / self.step))

    def sample(self, frame: int) -> int:
        """The audio sample at which a frame begins."""
        return round(frame / self.shape.fps * self.shape.sample_rate)

    def continued(self, clip: Clip, frames: int | None = None) -> GivenClip:
        """What the next window is given of a clip: its last frames and their sound, at the window's beginning.

        frames: of the clip, where `clip` has all of its sound and only its last pictures.
        """
        frames, shape = len(clip.pictures) if frames is None else frames, self.shape
        if frames < self.overlap:
            raise MovaError(f"the clip has {frames} frames; to go on from it takes its last {self.overlap}")
        pictures = np.zeros((shape.frames, *clip.pictures.shape[1:]), np.uint8)
        pictures[: self.overlap] = clip.pictures[-self.overlap :]
        sound = np.zeros(shape.audio_samples, np.float32)
        head = clip.audio[self.sample(frames - self.overlap) : self.sample(frames)]
        sound[: len(head)] = head
        # What kept sound fades into begins with it (`with_kept_sound`): its mirror image has no jump, as zeros have.
        mirrored = head[::-1][: min(round(FADE_S * shape.sample_rate), len(sound) - len(head))]
        sound[len(head) : len(head) + len(mirrored)] = mirrored
        return GivenClip(Clip(pictures, sound), video=self._made, audio=self._made)

    def joined(self, frames: int, sound: np.ndarray, following: np.ndarray) -> np.ndarray:
        """The sound of a clip of so many frames and that of the window which continues it."""
        # Where the last whole latent of kept sound ends, within a latent of the overlap's end.
        kept = sum(kept_audio_latents(self._made, self.shape))
        length = kept * self.shape.audio_samples // self.shape.audio_tokens
        begin = self.sample(frames - self.overlap)
        return np.concatenate([sound[: begin + length], following[length:]])

    @property
    def _made(self) -> Window:
        """What of a window is made."""
        return Window.after(self.overlap, self.shape)


class _LongClip(Generic[Made]):
    """A clip that grows by windows. Its pictures go to `sink`; the last ones, which the next window is given, and the
    sound are kept.
    """

    def __init__(self, extension: Extension, sink: ClipSink[Made]) -> None:
        self._extension, self._sink = extension, sink
        self._frames, self._end = 0, cast("Clip | None", None)

    def add(self, clip: Clip) -> None:
        """A source, or the next window."""
        extension, pictures, sound = self._extension, clip.pictures, clip.audio
        if self._end is not None:
            pictures = pictures[extension.overlap :]
            sound = extension.joined(self._frames, self._end.audio, sound)
        if len(wanted := pictures[: max(0, extension.frames - self._frames)]):
            self._sink.add(wanted)
        self._frames += len(pictures)
        self._end = Clip(clip.pictures[-extension.overlap :].copy(), sound)

    def following(self, request: Request, window: int) -> Request:
        """The request for window number `window`."""
        seed = (request.seed + window) % (MAX_SEED + 1)
        if self._end is None:
            return replace(request, seed=seed)
        return replace(request, seed=seed, first_frame=None, given=self._extension.continued(self._end, self._frames))

    def finish(self) -> Made:
        """What the sink makes of it."""
        assert self._end is not None, "a clip has at least one window"
        return self._sink.finish(self._end.audio[: self._extension.sample(self._extension.frames)])


def extended(
    pipeline: Pipeline,
    sinks: Sinks[Made],
    requests: Sequence[Request],
    settings: SampleSettings,
    extension: Extension,
    *,
    source: Clip | None = None,
    batch: int = 1,
    on_step: Callable[[Step], None] | None = None,
    on_stage: Callable[[str], object] = lambda _: None,
) -> Iterator[Made]:
    """Yield, for each request in order, what its sink makes of a clip of `extension.frames` frames. A window at a time
    is in memory. source: a clip that all of them continue.

    Window i of a clip has the request's seed plus i. For a single process. The rest: as of `Pipeline.generate`.
    """
    if pipeline.processes.launch.world > 1:
        raise MovaError("clips are extended by one process: leave torchrun out, or make clips of the model's length")
    options = {"batch": batch, "on_step": on_step, "on_stage": on_stage}
    for start in range(0, len(requests), batch):
        some = requests[start : start + batch]
        with ExitStack() as opened:
            clips = [_LongClip(extension, opened.enter_context(closing(sinks(request)))) for request in some]
            if source is not None:
                for clip in clips:
                    clip.add(source)
            for window in range(extension.windows(0 if source is None else len(source.pictures))):
                following = [clip.following(request, window) for request, clip in zip(some, clips, strict=True)]
                for clip, made in zip(clips, pipeline.generate(following, settings, **options), strict=True):
                    assert made is not None, "one process gets every clip"
                    clip.add(made)
            for clip in clips:
                yield clip.finish()
