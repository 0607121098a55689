"""The schedule: noise levels of both modalities, timesteps, the expert boundary. Trainer and sampler share one object.

Flow matching (Lipman et al., 2023): `x_t = (1 - sigma) x + sigma noise`, timestep = 1000 sigma. A time s in [0, 1]
becomes `sigma = shift * s / (1 + (shift - 1) * s)` (Esser et al., 2024), with a shift per modality.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mova_engine.backend.host_copies import to_device
from mova_engine.config.diffusion import DiffusionSettings, ScheduleConfig, check_sigmas
from mova_engine.errors import MovaError

HIGH_NOISE, LOW_NOISE = 0, 1


@dataclass(frozen=True)
class Steps:
    """A sampling run of n steps: sigmas [n+1] float32 (the last is 0), timesteps [n] float32, the expert of each
    step.
    """

    video_sigmas: Tensor
    audio_sigmas: Tensor
    video_timesteps: Tensor
    audio_timesteps: Tensor
    experts: tuple[int, ...]


@dataclass(frozen=True)
class TrainingTimes:
    """Noise levels of a batch: sigmas [b] and timesteps [b], float32."""

    video_sigma: Tensor
    audio_sigma: Tensor
    video_timestep: Tensor
    audio_timestep: Tensor


class Schedule(ScheduleConfig):
    """The noise levels of a training or sampling run."""

    @classmethod
    def of(cls, settings: DiffusionSettings) -> Self:
        """The schedule that trainer and sampler share."""
        return cls(settings.video_shift, settings.audio_shift, settings.boundary)

    def expert(self, video_timestep: float) -> int:
        """0 (high noise) or 1 (low noise) for a video timestep on the 0..1000 scale."""
        return HIGH_NOISE if video_timestep >= self.boundary * self.num_train_timesteps else LOW_NOISE

    def inference(self, steps: int) -> Steps:
        """The noise levels of `steps` steps, times linear from 1 to `min_time`, then to sigma 0."""
        if steps < 1:
            raise MovaError(f"steps must be at least 1, got {steps}")
        # In float32, as the released model is sampled: the time embedding makes 1e-5 of angle of an ulp here.
        times = torch.linspace(1.0, self.min_time, steps)
        video, audio = shift_time(times, self.video_shift), shift_time(times, self.audio_shift)
        video_timesteps, audio_timesteps = (
            video * self.num_train_timesteps,
            audio * self.num_train_timesteps,
        )
        experts = tuple(self.expert(t) for t in video_timesteps.tolist())
        end = torch.zeros(1)
        return Steps(torch.cat([video, end]), torch.cat([audio, end]), video_timesteps, audio_timesteps, experts)

    def listed(self, video: Sequence[float], audio: Sequence[float] | None = None, switch: int | None = None) -> Steps:
        """Steps at given noise levels, as models that were distilled to a few steps state them: sigmas of the video,
        and of the audio (None: the same), to which no shift is applied; sigma 0 follows. switch: number of steps that
        the high-noise expert serves; None: those at and above the boundary.

        With n times as many levels of the audio, each step of the video is divided into n of these steps, in equal
        parts of its sigma: along one velocity, of the first part, it ends where one step does (`audio_substeps`).
        Raises MovaError for levels that do not descend within 0 < sigma <= 1, and for lengths that do not fit.
        """
        audio = video if audio is None else audio
        check_sigmas(video, audio, switch)
        parts = len(audio) // len(video)
        high = None if switch is None else switch * parts
        ends = (*video[1:], 0.0)
        video = [a + (b - a) * part / parts for a, b in zip(video, ends, strict=True) for part in range(parts)]
        video_sigmas, audio_sigmas = (torch.tensor([*each, 0.0], dtype=torch.float32) for each in (video, audio))
        video_timesteps, audio_timesteps = (x[:-1] * self.num_train_timesteps for x in (video_sigmas, audio_sigmas))
        # One expert serves all parts of a step.
        experts = tuple(self.expert(t) for t in video_timesteps.tolist()[::parts] for _ in range(parts))
        if high is not None:
            experts = (HIGH_NOISE,) * high + (LOW_NOISE,) * (len(video) - high)
        return Steps(video_sigmas, audio_sigmas, video_timesteps, audio_timesteps, experts)

    def boundary_time(self) -> float:
        """The time s at which the video's sigma crosses the expert boundary."""
        return self.boundary / (self.video_shift - (self.video_shift - 1) * self.boundary)

    def expert_probability(self, expert: int) -> float:
        """The share of the time interval that an expert serves: how often training should draw it."""
        low, high = self._interval(expert)
        return (high - low) / (1.0 - self.min_time)

    def _interval(self, expert: int | None) -> tuple[float, float]:
        middle = max(self.boundary_time(), self.min_time)
        return {None: (self.min_time, 1.0), HIGH_NOISE: (middle, 1.0), LOW_NOISE: (self.min_time, middle)}[expert]

    def draw(
        self,
        generator: torch.Generator,
        batch: int,
        expert: int | None = None,
        *,
        paired: bool = True,
        stratified: bool = False,
    ) -> TrainingTimes:
        """Draw continuous training times, uniform in s within the expert's interval (None: the whole interval).

        paired: both modalities of a clip share the time s (their sigmas differ by their shifts); otherwise the audio's
        time is drawn on its own over the whole interval. stratified: one draw from each of `batch` equal parts of the
        interval.
        """
        low, high = self._interval(expert)
        video = low + (high - low) * _uniform(generator, batch, stratified)
        if paired:
            audio = video
        else:
            audio = self.min_time + (1.0 - self.min_time) * _uniform(generator, batch, stratified)
        video_sigma, audio_sigma = shift_time(video, self.video_shift), shift_time(audio, self.audio_shift)
        timesteps = (sigma * self.num_train_timesteps for sigma in (video_sigma, audio_sigma))
        return TrainingTimes(*(x.float() for x in (video_sigma, audio_sigma, *timesteps)))


def shift_time(times: Tensor, shift: float) -> Tensor:
    """`shift * s / (1 + (shift - 1) * s)`, elementwise."""
    return shift * times / (1 + (shift - 1) * times)


def _uniform(generator: torch.Generator, batch: int, stratified: bool) -> Tensor:
    draws = torch.rand(batch, generator=generator, dtype=torch.float64)
    if not stratified:
        return draws
    return (torch.randperm(batch, generator=generator) + draws) / batch


def add_noise(x: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """`(1 - sigma) x + sigma noise`, computed in float32 and returned in x's dtype; sigma [b]."""
    sigma = to_device(sigma, x.device, torch.float32).view(-1, *[1] * (x.ndim - 1))
    return ((1 - sigma) * x.float() + sigma * noise.float()).to(x.dtype)


def velocity_target(x: Tensor, noise: Tensor) -> Tensor:
    """The velocity that the model learns: `noise - x`."""
    return noise - x


def euler_step(x: Tensor, velocity: Tensor, sigma_from: float, sigma_to: float) -> Tensor:
    """`x + velocity * (sigma_to - sigma_from)`; states stay float32."""
    return x + velocity.float() * (sigma_to - sigma_from)
