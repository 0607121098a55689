"""Log mel energies as Kaldi computes them (`compute-fbank-feats` without dither), in torch.

The numbers are those of `torchaudio.compliance.kaldi.fbank` with `dither=0`, `use_energy=False` and its other defaults,
within float32's rounding. Differences to `mel.py`: frames are not centred and none reaches beyond the sound, each frame
loses its own mean and is pre-emphasised, the spectrum has the next power of two, and the triangles are straight in mel.
"""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KaldiWindow = Literal["hanning", "povey"]


def fbank(
    samples: Tensor,
    sample_rate: int = 16000,
    *,
    mels: int = 128,
    window: KaldiWindow = "hanning",
    frame_ms: float = 25.0,
    shift_ms: float = 10.0,
    preemphasis: float = 0.97,
    low: float = 20.0,
    high: float | None = None,
) -> Tensor:
    """Natural logarithm of the mel energies of samples float32 [..., n] -> [..., frames, mels].

    frames = 1 + (n - frame) // shift, 0 where the sound is shorter than a frame. Energies are at least float32's
    epsilon. low, high: corners of the bank in Hz; high None is half the sample rate. The samples keep their scale: what
    expects Kaldi's own range multiplies by 32768 before. Nothing is changed in place.
    """
    length, shift = int(sample_rate * frame_ms * 0.001), int(sample_rate * shift_ms * 0.001)
    if samples.shape[-1] < length:
        return samples.new_empty(*samples.shape[:-1], 0, mels)
    frames = samples.unfold(-1, length, shift)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    frames = (frames - preemphasis * before) * _window(window, length).to(samples)
    padded = 1 << (length - 1).bit_length()
    spectrum = torch.fft.rfft(F.pad(frames, (0, padded - length)))
    power = spectrum.real.square() + spectrum.imag.square()
    energies = power @ kaldi_filter_bank(sample_rate, padded, mels, low, high).to(power)
    return energies.clamp_min(torch.finfo(torch.float32).eps).log()


def kaldi_filter_bank(sample_rate: int, n_fft: int, mels: int, low: float = 20.0, high: float | None = None) -> Tensor:
    """Filters float32 [n_fft // 2 + 1, mels], triangles over 1127 ln(1 + f / 700) with height 1; Nyquist has none."""
    return _bank(sample_rate, n_fft, mels, low, sample_rate / 2 if high is None else high)


@lru_cache(16)
def _bank(sample_rate: int, n_fft: int, mels: int, low: float, high: float) -> Tensor:
    corners = np.linspace(_mel(low), _mel(high), mels + 2)
    bins = _mel(np.arange(n_fft // 2) * (sample_rate / n_fft))[:, None]
    step = corners[1] - corners[0]
    rising, falling = (bins - corners[None, :-2]) / step, (corners[None, 2:] - bins) / step
    bank = np.maximum(0, np.minimum(rising, falling))
    return torch.from_numpy(np.pad(bank, ((0, 1), (0, 0))).astype(np.float32))


def _mel(hertz: "np.ndarray | float") -> np.ndarray:
    return 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)


def _window(name: KaldiWindow, length: int) -> Tensor:
    """Kaldi's windows end with zeros at both ends: they are symmetric, not periodic."""
    hann = torch.hann_window(length, periodic=False, dtype=torch.float64)
    return hann if name == "hanning" else hann.pow(0.85)
