"""The reference's table of noise levels and what it does with it. Only for reproducing its recorded numbers.

Ours uses exact sigmas and continuous training times; the table's nearest entry is off by up to 1.2e-2.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mova_engine.diffusion.schedule import Schedule, Steps, shift_time


@dataclass(frozen=True)
class Table:
    """`entries` noise levels of a schedule's video, descending, from 1 to the shifted `min_time`."""

    schedule: Schedule
    entries: int

    @property
    def sigmas(self) -> Tensor:
        """Float32 [entries]."""
        times = torch.linspace(1.0, self.schedule.min_time, self.entries)
        return shift_time(times, self.schedule.video_shift)

    @property
    def timesteps(self) -> Tensor:
        """Float32 [entries], on the scale of `num_train_timesteps`."""
        return self.sigmas * self.schedule.num_train_timesteps

    def nearest(self, timesteps: Tensor) -> Tensor:
        """Index of the entry whose timestep is nearest, for timesteps [n]."""
        return (self.timesteps - timesteps.float().unsqueeze(1)).abs().argmin(1)

    def snapped(self, steps: Steps) -> Steps:
        """Sampling steps whose sigmas are replaced by the nearest entries'; timesteps stay exact."""

        def snap(timesteps: Tensor) -> Tensor:
            return torch.cat([self.sigmas[self.nearest(timesteps)], torch.zeros(1)])

        return replace(steps, video_sigmas=snap(steps.video_timesteps), audio_sigmas=snap(steps.audio_timesteps))

    @property
    def boundary_index(self) -> int:
        """How many entries belong to the high-noise expert."""
        return int((self.timesteps >= self.schedule.boundary * self.schedule.num_train_timesteps).sum())

    def training_index(self, uniform: Tensor, expert: int) -> Tensor:
        """Index for draws u in [0, 1) inside an expert's part of the table."""
        low, high = (0, self.boundary_index) if expert == 0 else (self.boundary_index, self.entries)
        # In float32 a draw just below 1 would be rounded up, to an entry beyond the part.
        return (low + uniform.double() * (high - low)).long()

    @property
    def weights(self) -> Tensor:
        """Bell-shaped loss weights, mean one. The reference computes them and does not use them in its loss."""
        bell = torch.exp(-2 * ((self.timesteps - self.entries / 2) / self.entries).square())
        bell = bell - bell.min()
        return bell * (self.entries / bell.sum())
