"""Mel spectra of sound in torch: windows, power spectra, filter banks of both scales, decibels.

Samples are float32 or float64 [..., n]; spectra are [..., frames, bins], in the dtype of the samples. The results are
those of librosa (`scale="slaney", norm="slaney"`) and of torchaudio's `MelSpectrogram` (its defaults are `scale="htk",
norm=None`) within float32's rounding.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError

MelScale = Literal["slaney", "htk"]
# Slaney's scale (Auditory Toolbox, 1998): linear below 1 kHz, 15 mel there; 27 steps a factor of 6.4 above.
_LINEAR_HZ = 200 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP = np.log(6.4) / 27


def hertz_to_mel(hertz: "np.ndarray | float", scale: MelScale) -> np.ndarray:
    """Frequencies in mel, float64: "htk" is 2595 log10(1 + f / 700), "slaney" linear below 1 kHz, logarithmic above."""
    f = np.asarray(hertz, np.float64)
    if scale == "htk":
        return 2595 * np.log10(1 + f / 700)
    if scale == "slaney":
        above = _BREAK_MEL + np.log(np.maximum(f, _BREAK_HZ) / _BREAK_HZ) / _LOG_STEP
        return np.where(f < _BREAK_HZ, f / _LINEAR_HZ, above)
    raise MovaError(f"unknown mel scale '{scale}': slaney or htk")


def mel_to_hertz(mel: "np.ndarray | float", scale: MelScale) -> np.ndarray:
    """The inverse of `hertz_to_mel`, float64."""
    m = np.asarray(mel, np.float64)
    if scale == "htk":
        return 700 * (10 ** (m / 2595) - 1)
    if scale == "slaney":
        above = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(m, _BREAK_MEL) - _BREAK_MEL))
        return np.where(m < _BREAK_MEL, m * _LINEAR_HZ, above)
    raise MovaError(f"unknown mel scale '{scale}': slaney or htk")


def mel_filter_bank(
    sample_rate: int,
    n_fft: int,
    mels: int,
    low: float = 0.0,
    high: float | None = None,
    *,
    scale: MelScale,
    norm: Literal["slaney"] | None,
) -> Tensor:
    """Triangular filters float32 [n_fft // 2 + 1, mels]: power_spectrum(...) @ bank is the mel spectrum.

    low, high: outer corners in Hz; high None is half the sample rate. norm "slaney" gives each triangle the area 1 (it
    divides by half its width in Hz), None the height 1. As their sources do it, Slaney's filters are computed in
    float64 and HTK's in float32: of a quiet band beside a loud one the difference is 3e-4 dB.
    """
    top = sample_rate / 2 if high is None else high
    dtype = torch.float32 if scale == "htk" else torch.float64
    first, last = (float(hertz_to_mel(edge, scale)) for edge in (low, top))
    # On the CPU whatever the default device: networks are built on the meta device, with tables that are real.
    mel = torch.linspace(first, last, mels + 2, dtype=dtype, device="cpu")
    corners = 700 * (10 ** (mel / 2595) - 1) if scale == "htk" else torch.from_numpy(mel_to_hertz(mel.numpy(), scale))
    bins = torch.linspace(0, sample_rate / n_fft * (n_fft // 2), n_fft // 2 + 1, dtype=dtype, device="cpu")
    widths, ramps = corners.diff(), corners[None] - bins[:, None]
    bank = torch.minimum(-ramps[:, :-2] / widths[:-1], ramps[:, 2:] / widths[1:]).clamp_min(0).float()
    if norm == "slaney":
        bank = (bank * (2 / (corners[2:] - corners[:-2]))).float()
    return bank


def hann_window(length: int, like: Tensor) -> Tensor:
    """The periodic Hann window [length], computed in the dtype of `like` and on its device."""
    return torch.hann_window(length, dtype=like.dtype, device=like.device)


def power_spectrum(
    samples: Tensor,
    n_fft: int,
    hop: int,
    *,
    window_length: int | None = None,
    pad_mode: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """|STFT|^2 of samples [..., n] -> [..., frames, n_fft // 2 + 1].

    frames = 1 + n // hop, one less where n_fft is odd and hop divides n. They are centred: n_fft // 2 samples are
    padded at both ends. The Hann window has window_length (n_fft) samples and lies in the middle of n_fft. MovaError
    where the sound is too short to be reflected.
    """
    n = samples.shape[-1]
    if n <= n_fft // 2 and pad_mode == "reflect":
        raise MovaError(f"{n} samples are too few for a spectrum of {n_fft} that reflects half of them at the ends")
    window = hann_window(window_length or n_fft, samples)
    # The dimensions before the last are one batch: torch.stft pads no other shape by reflection.
    padded = F.pad(samples.reshape(-1, n), (n_fft // 2, n_fft // 2), mode=pad_mode)
    spectrum = torch.stft(
        padded, n_fft, hop, window_length or n_fft, window, center=False, onesided=True, return_complex=True
    )
    power = spectrum.abs().square()
    return power.transpose(-1, -2).reshape(*samples.shape[:-1], power.shape[-1], power.shape[-2])


def mel_spectrum(
    samples: Tensor,
    bank: Tensor,
    hop: int,
    *,
    n_fft: int,
    window_length: int | None = None,
    pad_mode: Literal["reflect", "constant"] = "reflect",
) -> Tensor:
    """The power spectrum of samples [..., n] through a filter bank [n_fft // 2 + 1, mels] -> [..., frames, mels]."""
    power = power_spectrum(samples, n_fft, hop, window_length=window_length, pad_mode=pad_mode)
    return power @ bank.to(power)


def decibels(power: Tensor, least: float = 1e-10) -> Tensor:
    """10 log10(max(power, least)): dB against 1."""
    return 10 * power.clamp_min(least).log10()
