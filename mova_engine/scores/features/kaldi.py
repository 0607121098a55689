"""Log mel energies as Kaldi computes them (`compute-fbank-feats` without dither), in torch.

The numbers are those of `torchaudio.compliance.kaldi.fbank` with `dither=0`, `use_energy=False` and its other defaults,
within float32's rounding. Differences to `mel.py`: frames are not centred and none reaches beyond the sound, each frame
loses its own mean and is pre-emphasised, the spectrum has the next power of two, and the triangles are straight in mel.
"""

import math
from functools import lru_cache
from typing import Literal

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
    power = spectrum.abs().square()
    energies = power @ kaldi_filter_bank(sample_rate, padded, mels, low, high).to(power)
    return energies.clamp_min(torch.finfo(torch.float32).eps).log()


def kaldi_filter_bank(sample_rate: int, n_fft: int, mels: int, low: float = 20.0, high: float | None = None) -> Tensor:
    """Filters float32 [n_fft // 2 + 1, mels], triangles over 1127 ln(1 + f / 700) with height 1; Nyquist has none."""
    return _bank(sample_rate, n_fft, mels, low, sample_rate / 2 if high is None else high)


@lru_cache(16)
def _bank(sample_rate: int, n_fft: int, mels: int, low: float, high: float) -> Tensor:
    first, last = (1127 * math.log(1 + edge / 700) for edge in (low, high))
    # In float32 from here on, as torchaudio has it: a bin beside a triangle's foot differs by 1e-5.
    corners = first + torch.arange(mels + 2) * ((last - first) / (mels + 1))
    bins = 1127 * (1 + sample_rate / n_fft * torch.arange(n_fft // 2) / 700).log()[:, None]
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bank = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp_min(0)
    return F.pad(bank, (0, 0, 0, 1))


def _window(name: KaldiWindow, length: int) -> Tensor:
    """Kaldi's windows end with zeros at both ends: they are symmetric, not periodic."""
    hann = torch.hann_window(length, periodic=False)
    return hann if name == "hanning" else hann.pow(0.85)
