"""Resampling by a windowed sinc in torch: the numbers of torchaudio's `Resample` with its defaults."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError


def resample(samples: Tensor, source: int, target: int, *, zeros: int = 6, rolloff: float = 0.99) -> Tensor:
    """Samples [..., n] at `source` Hz -> [..., ceil(n target / source)] at `target` Hz; equal rates give them back.

    The low pass is a sinc with its edge at `rolloff` of the lower Nyquist frequency, `zeros` zero crossings wide on
    each side, under a squared-cosine (Hann) window. Beyond the ends the sound is zero. Source of the maths: J. O.
    Smith, Digital Audio Resampling.
    """
    if source <= 0 or target <= 0:
        raise MovaError(f"sample rates must be positive, got {source} and {target} Hz")
    if source == target:
        return samples
    common = math.gcd(source, target)
    step, phases = source // common, target // common
    kernels, width = _kernels(step, phases, zeros, rolloff)
    n = samples.shape[-1]
    padded = F.pad(samples.reshape(-1, 1, n), (width, width + step))
    found = F.conv1d(padded, kernels.to(samples)[:, None], stride=step)
    found = found.transpose(1, 2).reshape(len(padded), -1)[:, : math.ceil(n * phases / step)]
    return found.reshape(*samples.shape[:-1], -1)


@lru_cache(16)
def _kernels(step: int, phases: int, zeros: int, rolloff: float) -> tuple[Tensor, int]:
    """Filters [phases, 2 width + step], one for each place of a new sample between `step` old ones, and width."""
    # In float32 and in torchaudio's order: its own filters are rounded so, and they are in published numbers to 6e-6.
    edge = min(step, phases) * rolloff
    width = math.ceil(zeros * step / edge)
    at = torch.arange(-width, width + step, dtype=torch.float32) / step
    t = (torch.arange(0, -phases, -1, dtype=torch.float32)[:, None] / phases + at) * edge
    t = t.clamp(-zeros, zeros)
    window = torch.cos(t * math.pi / zeros / 2) ** 2
    t = t * math.pi
    return torch.where(t == 0, 1.0, t.sin() / t) * (window * (edge / step)), width
