"""Numbers of the noise schedule, of the networks' output and of the loss; `diffusion` computes with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from mova_engine.config.limits import check, check_least
from mova_engine.errors import suggest

# The smallest time of the released model's schedules.
MIN_TIME = 0.003 / 1.002
PREDICTION_TYPES = ("velocity", "x0")
# Which integrate the sampling equation (`diffusion.solvers`).
SOLVERS = ("euler", "heun", "unipc")
# Settings, each a share of the clips, of which none is in two.
GIVEN = ("given_video", "given_audio", "given_start")


def check_solver(name: str) -> None:
    """MovaError, with the nearest, for a name that is no solver's."""
    check(name in SOLVERS, f"unknown solver '{name}'.{suggest(name, SOLVERS)} Known: {', '.join(SOLVERS)}")


def check_sigmas(video: Sequence[float], audio: Sequence[float] | None = None, switch: int | None = None) -> None:
    """MovaError for lists of noise levels that no sampling run can follow. switch: steps of the high-noise expert."""
    for name, sigmas in (("sigmas", video), ("audio sigmas", audio)):
        if sigmas is not None:
            falling = all(a > b for a, b in pairwise((math.inf, *sigmas, 0.0)))
            check(
                len(sigmas) > 0 and falling and sigmas[0] <= 1,
                f"{name} must be noise levels of at most 1 that fall, without the 0 at the end, got "
                + ", ".join(f"{sigma:g}" for sigma in sigmas),
            )
    check(
        audio is None or (len(audio) >= len(video) and len(audio) % len(video) == 0),
        "each step has one noise level of the video and one or several of the audio, so many in each, but there are "
        f"{len(video)} sigmas and {len(audio or ())} audio sigmas",
    )
    check(
        switch is None or 0 <= switch <= len(video),
        f"the switch of experts must lie between 0 and {len(video)}, the number of steps, got {switch}",
    )


@dataclass(frozen=True)
class ScheduleConfig:
    """video_shift, audio_shift: sigma shift per modality. boundary: the high-noise expert serves timesteps >=
    `num_train_timesteps * boundary`. min_time: the smallest time s, in (0, 1).
    """

    video_shift: float = 5.0
    audio_shift: float = 5.0
    boundary: float = 0.9
    num_train_timesteps: int = 1000
    min_time: float = MIN_TIME

    def __post_init__(self) -> None:
        for name in ("video_shift", "audio_shift"):
            # So written that nan, which is neither, is refused too.
            check(0 < getattr(self, name) < math.inf, f"{name} must be positive, got {getattr(self, name)}")
        check(0 < self.boundary < 1, f"expert boundary must lie between 0 and 1, got {self.boundary}")
        check(0 < self.min_time < 1, f"min_time must lie between 0 and 1, got {self.min_time}")


@dataclass(frozen=True)
class PredictionConfig:
    """kind: what the network's output means. sigma_floor bounds the x0 loss's weight 1/sigma^2; it concerns the loss
    alone, since an integrator that divided by more than sigma would follow another equation and leave noise behind.
    """

    kind: str = "velocity"
    sigma_floor: float = 0.25

    def __post_init__(self) -> None:
        known = f"{suggest(self.kind, PREDICTION_TYPES)} Known: {', '.join(PREDICTION_TYPES)}"
        check(self.kind in PREDICTION_TYPES, f"unknown prediction '{self.kind}'.{known}")
        check(0 < self.sigma_floor < math.inf, f"sigma_floor must be positive, got {self.sigma_floor}")


@dataclass(frozen=True)
class LossWeights:
    """`total = video * video_loss + audio * audio_loss`. skip_first_frame: latent frame 0 (given as condition) does
    not count.
    """

    video: float = 1.0
    audio: float = 1.0
    skip_first_frame: bool = False


@dataclass(frozen=True)
class DiffusionSettings:
    """Noise levels, output, loss."""

    video_shift: float = 5.0
    """Sigma shift of the video."""
    audio_shift: float = 5.0
    """Sigma shift of the audio."""
    boundary: float = 0.9
    """Video noise level from which on the high-noise expert serves."""
    timestep_sampling: Literal["paired", "independent"] = "independent"
    """Whether both modalities of a clip share the time from which their noise levels follow."""
    stratified: bool = False
    """Spread the times of an optimizer step evenly over the interval."""
    prediction_type: Literal["velocity", "x0"] = "velocity"
    """What the networks put out; x0 is converted to a velocity."""
    sigma_floor: float = 0.25
    """Noise level below which the x0 loss's weight, 1/sigma^2, grows no further; sampling divides by sigma itself."""
    video_weight: float = 1.0
    """Factor of the video's loss."""
    audio_weight: float = 1.0
    """Factor of the audio's loss."""
    skip_first_frame: bool = False
    """Leave latent frame 0, which is given as condition, out of the loss."""
    text_dropout: float = 0.0
    """Share of clips whose text is replaced by the empty prompt's."""
    bridge_dropout: float = 0.0
    """Share of steps without the bridge: for guidance by the bridge, which evaluates the model without it."""
    # The shares of given clips concern joint training: the audio task, which has no pictures, leaves them out.
    given_video: float = 0.0
    """Share of clips whose video is given clean, and only the audio learned: sound for a video. With two experts, of
    the steps that train the low-noise one."""
    given_audio: float = 0.0
    """Share of clips whose audio is given clean, and only the video learned: pictures for a sound."""
    given_start: float = 0.0
    """Share of clips whose beginning is given clean, pictures with their sound, and only the rest learned: clips that
    go on from others, as the windows of `mova sample --extend` do."""
    start_frames: int = 9
    """Pictures of a beginning that is given, 4n+1: the `--overlap` of the windows that are wanted."""

    def __post_init__(self) -> None:
        check_least(self, "diffusion.", video_weight=0, audio_weight=0)
        for name in ("text_dropout", "bridge_dropout", *GIVEN):
            check(0 <= getattr(self, name) <= 1, f"diffusion.{name} must lie in 0..1, got {getattr(self, name)}")
        check(
            self.given <= 1,
            "diffusion.given_video, given_audio and given_start are shares of the same clips: their sum is "
            f"{self.given:g}",
        )
        check(
            self.start_frames > 0 and self.start_frames % 4 == 1,
            f"diffusion.start_frames must be 4n+1 pictures, whole latent frames, got {self.start_frames}",
        )
        ScheduleConfig(self.video_shift, self.audio_shift, self.boundary)
        PredictionConfig(self.prediction_type, self.sigma_floor)

    def of_task(self, task: str) -> "DiffusionSettings":
        """The settings that concern a task: nothing is given in training of sound alone."""
        return self if task == "joint" else replace(self, given_video=0.0, given_audio=0.0, given_start=0.0)

    @property
    def given(self) -> float:
        """Share of clips of which something is given."""
        return sum(getattr(self, name) for name in GIVEN)

    def weights(self) -> LossWeights:
        """The loss's weights."""
        return LossWeights(self.video_weight, self.audio_weight, self.skip_first_frame)
