"""Amplitude (RMS) and integrated loudness of sound.

Loudness: ITU-R BS.1770-4 with its K weighting and two gates, in LUFS. The filters are second-order sections from the
"Audio EQ Cookbook" with the constants of pyloudnorm, so they fit every sample rate.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import lfilter
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.scores.features.resample import resample

Array = NDArray[np.float64]
BLOCK_SECONDS = 0.4
OVERLAP = 0.75
ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU
_OFFSET = -0.691  # dB: makes a full-scale sine of 997 Hz in one channel read -3.01
_AUDIOTOOLS_LEAST_SECONDS = 0.5
Convention = Literal["mova", "audiotools", "corrected"]


def rms(sound: Tensor) -> float:
    """Root of the mean square of samples in -1..1, any shape; full scale is 1."""
    return float(sound.to(torch.float64).square().mean().sqrt())


def k_weighting(sample_rate: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """The two stages (b, a) of the K weighting: a high shelf of +4 dB above 1.5 kHz, and a high-pass at 38 Hz."""
    return _high_shelf(sample_rate, 4.0, 1 / math.sqrt(2), 1500.0), _high_pass(sample_rate, 0.5, 38.0)


def _high_shelf(rate: int, gain_db: float, q: float, frequency: float) -> tuple[Array, Array]:
    a = 10 ** (gain_db / 40)
    w = 2 * math.pi * frequency / rate
    alpha, cosine = math.sin(w) / (2 * q), math.cos(w)
    slope = 2 * math.sqrt(a) * alpha
    b = np.array(
        [
            a * ((a + 1) + (a - 1) * cosine + slope),
            -2 * a * ((a - 1) + (a + 1) * cosine),
            a * ((a + 1) + (a - 1) * cosine - slope),
        ]
    )
    poles = np.array([(a + 1) - (a - 1) * cosine + slope, 2 * ((a - 1) - (a + 1) * cosine), 0.0])
    poles[2] = (a + 1) - (a - 1) * cosine - slope
    return b / poles[0], poles / poles[0]


def _high_pass(rate: int, q: float, frequency: float) -> tuple[Array, Array]:
    w = 2 * math.pi * frequency / rate
    alpha, cosine = math.sin(w) / (2 * q), math.cos(w)
    b = np.array([(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2])
    a = np.array([1 + alpha, -2 * cosine, 1 - alpha])
    return b / a[0], a / a[0]


def loudness(sound: Tensor, sample_rate: int, convention: Convention = "corrected") -> float:
    """Integrated loudness in LUFS of mono sound [n] in -1..1.

    mova: pyloudnorm's, as MOVA's evaluation uses it: -inf where no block passes the absolute gate.
    audiotools: descript-audiotools', which that evaluation prefers where it is installed: shorter sound is padded to
    half a second, and nothing is below -70.
    corrected: as `mova`, but sound below the gate has no loudness: MovaError. A mean over clips stays a number.

    Raises MovaError for sound shorter than a block (0.4 s), but under `audiotools`.
    """
    x = sound.to(torch.float64).numpy()
    if convention == "audiotools":
        missing = int((_AUDIOTOOLS_LEAST_SECONDS - len(x) / sample_rate) * sample_rate)
        x = np.pad(x, (0, max(0, missing)))
    elif len(x) < BLOCK_SECONDS * sample_rate:
        raise MovaError(
            f"sound of {len(x) / sample_rate:.3g} s is shorter than a block of loudness ({BLOCK_SECONDS} s)"
        )
    value = _gated(_block_powers(x, sample_rate))
    if convention == "audiotools":
        return max(value, ABSOLUTE_GATE)
    if convention == "corrected" and value == -math.inf:
        raise MovaError(f"the sound is below {ABSOLUTE_GATE:g} LUFS throughout: it has no loudness")
    return value


def _block_powers(x: Array, rate: int) -> Array:
    """The mean square of the weighted sound in each block of 0.4 s, every 0.1 s."""
    for b, a in k_weighting(rate):
        x = np.asarray(lfilter(b, a, x), np.float64)
    step = 1.0 - OVERLAP
    count = int(np.round((len(x) / rate - BLOCK_SECONDS) / (BLOCK_SECONDS * step))) + 1
    edges = [(int(BLOCK_SECONDS * j * step * rate), int(BLOCK_SECONDS * (j * step + 1) * rate)) for j in range(count)]
    return np.array([np.square(x[start:end]).sum() / (BLOCK_SECONDS * rate) for start, end in edges])


def _gated(powers: Array) -> float:
    levels = _decibels(powers)
    loud = levels >= ABSOLUTE_GATE
    if not loud.any():
        return -math.inf
    threshold = _decibels(powers[loud].mean()) + RELATIVE_GATE
    kept = powers[loud & (levels > threshold) & (levels > ABSOLUTE_GATE)]
    return float(_decibels(kept.mean())) if len(kept) else -math.inf


def _decibels(power: Array) -> Array:
    with np.errstate(divide="ignore"):
        return _OFFSET + 10 * np.log10(power)


def mono_at(sound: Tensor, source_rate: int, start: float, rate: int = 48000) -> Tensor:
    """Sound [channels, n] whose first sample is `start` seconds in the clip, as mono [m] at `rate`.

    As MOVA's evaluation takes sound for loudness: it is resampled, silence is put before a late start, then channels
    are averaged.
    """
    at_rate = resample(sound, source_rate, rate)
    silence = max(0, round(start * rate))
    return torch.nn.functional.pad(at_rate, (silence, 0)).mean(0)
