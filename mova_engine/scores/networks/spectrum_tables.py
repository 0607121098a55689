"""The front end of PANNs networks: a spectrum by tables of a DFT and mel bands, all of them part of the checkpoint."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.scores.features.mel import decibels, mel_filter_bank


class DftTable(nn.Module):
    """One part of a DFT's rows times a periodic Hann window: `weight` [n_fft // 2 + 1, 1, n_fft]."""

    weight: Tensor

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(values.astype(np.float32))[:, None])


class WindowedDft(nn.Module):
    """The tables `conv_real` and `conv_imag` of torchlibrosa's STFT."""

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        n = np.arange(n_fft)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / n_fft)
        # Whole turns of the angles are dropped as integers: the tables are as exact in the last row as in the first.
        angles = (np.outer(np.arange(n_fft // 2 + 1), n) % n_fft) * (2 * np.pi / n_fft)
        self.conv_real = DftTable(np.cos(angles) * window)
        self.conv_imag = DftTable(-np.sin(angles) * window)


class PowerSpectrumTables(nn.Module):
    """|STFT|^2 of sound [b, n] -> [b, 1 + n // hop, n_fft // 2 + 1]; frames are centred, the ends are reflected."""

    def __init__(self, n_fft: int, hop: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.stft = WindowedDft(n_fft)

    def forward(self, samples: Tensor) -> Tensor:
        half = self.n_fft // 2
        if samples.shape[-1] <= half:
            raise MovaError(f"{samples.shape[-1]} samples are too few for this network: more than {half} are needed")
        padded = F.pad(samples[:, None], (half, half), mode="reflect")
        # Convolutions, as torchlibrosa has them, and no FFT: its rounding is in every published number, and outputs
        # near 1 of a sigmoid in float32 magnify it (a step of 1 - p = 4e-5 is 0.3 %).
        real = F.conv1d(padded, self.stft.conv_real.weight, stride=self.hop)
        imaginary = F.conv1d(padded, self.stft.conv_imag.weight, stride=self.hop)
        return real.square_().add_(imaginary.square_()).transpose(1, 2)


class MelTable(nn.Module):
    """A power spectrum -> dB of mel bands by the bank `melW` [n_fft // 2 + 1, mels]; below 1e-10 counts as 1e-10."""

    melW: Tensor

    def __init__(self, sample_rate: int, n_fft: int, mels: int, low: float, high: float) -> None:
        super().__init__()
        bank = mel_filter_bank(sample_rate, n_fft, mels, low, high, scale="slaney", norm="slaney")
        self.register_buffer("melW", bank)

    def forward(self, power: Tensor) -> Tensor:
        return decibels(power @ self.melW)
