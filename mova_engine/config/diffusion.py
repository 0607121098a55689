"""Numbers of the noise schedule, of the networks' output and of the loss; `diffusion` computes with them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mova_engine.config.limits import check
from mova_engine.errors import suggest

# The smallest time of the released model's schedules.
MIN_TIME = 0.003 / 1.002
PREDICTION_TYPES = ("velocity", "x0")
# Which integrate the sampling equation (`diffusion.solvers`).
SOLVERS = ("euler", "heun", "unipc")


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
        audio is None or len(audio) == len(video),
        f"each step has a noise level of video and of audio, but there are {len(video)} sigmas and "
        f"{len(audio or ())} audio sigmas",
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
