"""Numbers of the noise schedule, of the networks' output and of the loss; `diffusion` computes with them."""

import math
from dataclasses import dataclass

from mova_engine.config.limits import check
from mova_engine.errors import suggest

# The smallest time of the released model's schedules.
MIN_TIME = 0.003 / 1.002
PREDICTION_TYPES = ("velocity", "x0")


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
