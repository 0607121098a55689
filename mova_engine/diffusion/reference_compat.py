"""The reference's 1000-entry table and what it does with it. Only for reproducing its recorded numbers.

Ours uses exact sigmas and continuous training times; the table's nearest entry is off by up to 1.2e-2.
"""

from dataclasses import replace

import torch
from torch import Tensor

from mova_engine.diffusion.schedule import MIN_TIME, Steps, shift_time

SHIFT = 5.0
ENTRIES = 1000


def table_sigmas(shift: float = SHIFT) -> Tensor:
    """The table's sigmas, descending, float32 [1000]."""
    return shift_time(torch.linspace(1.0, MIN_TIME, ENTRIES), shift)


def nearest_sigma(timesteps: Tensor, shift: float = SHIFT) -> Tensor:
    """Sigma of the table entry whose timestep is nearest, for timesteps [n] on the 0..1000 scale."""
    table = table_sigmas(shift)
    return table[(table * ENTRIES - timesteps.float().unsqueeze(1)).abs().argmin(1)]


def snapped(steps: Steps) -> Steps:
    """Sampling steps whose sigmas are replaced by the nearest table entries; timesteps stay exact."""

    def snap(timesteps: Tensor) -> Tensor:
        return torch.cat([nearest_sigma(timesteps), torch.zeros(1)])

    return replace(steps, video_sigmas=snap(steps.video_timesteps), audio_sigmas=snap(steps.audio_timesteps))


def boundary_index(boundary: float, shift: float = SHIFT) -> int:
    """How many table entries belong to the high-noise expert."""
    return int((table_sigmas(shift) * ENTRIES >= boundary * ENTRIES).sum())


def training_index(uniform: Tensor, expert: int, boundary: float) -> Tensor:
    """Table index for draws u in [0, 1) inside an expert's part of the table."""
    middle = boundary_index(boundary)
    low, high = (0, middle) if expert == 0 else (middle, ENTRIES)
    return (low + uniform * (high - low)).long()


def training_weights() -> Tensor:
    """The table's bell-shaped loss weights, mean one. The reference computes them and does not use them in its loss."""
    timesteps = table_sigmas() * ENTRIES
    bell = torch.exp(-2 * ((timesteps - ENTRIES / 2) / ENTRIES).square())
    bell = bell - bell.min()
    return bell * (ENTRIES / bell.sum())
