"""PANNs' Cnn14, the audio tagger whose features FD, KL and IS are computed from (Kong et al. 2020, arXiv 1912.10211).

The modules have the names of the official checkpoints, `Cnn14_16k_mAP=0.438.pth` and `Cnn14_mAP=0.431.pth`.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.scores.networks.spectrum_tables import MelTable, PowerSpectrumTables


@dataclass(frozen=True)
class PannsConfig:
    """Sample rate in Hz, samples of a spectrum and between two, mel bands and their range in Hz, classes, widths."""

    sample_rate: int
    n_fft: int
    hop: int
    mels: int = 64
    low: float = 50.0
    high: float = 14000.0
    classes: int = 527
    channels: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)


CNN14_16K = PannsConfig(16000, 512, 160, high=8000.0)
CNN14_32K = PannsConfig(32000, 1024, 320)


@dataclass(frozen=True)
class TaggedSound:
    """What Cnn14 says of b clips: embedding [b, width], logits [b, classes]."""

    embedding: Tensor
    logits: Tensor

    @property
    def clipwise(self) -> Tensor:
        """Each class's own probability [b, classes]."""
        return self.logits.sigmoid()


class ConvBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and ReLU, then average pooling: [b, c, t, m] -> [b, c', t / p, m / p]."""

    def __init__(self, inputs: int, outputs: int, pooling: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pooling = pooling

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.bn1(self.conv1(x)))
        x = F.relu_(self.bn2(self.conv2(x)))
        return x if self.pooling == 1 else F.avg_pool2d(x, self.pooling)


class Cnn14(nn.Module):
    """Sound [b, n] at the configuration's rate, float32 in -1..1 -> `TaggedSound`. For inference, in eval mode."""

    def __init__(self, config: PannsConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrogram_extractor = PowerSpectrumTables(config.n_fft, config.hop)
        self.logmel_extractor = MelTable(config.sample_rate, config.n_fft, config.mels, config.low, config.high)
        self.bn0 = nn.BatchNorm2d(config.mels)
        for i, (inputs, outputs) in enumerate(pairwise((1, *config.channels)), 1):
            pooling = 1 if i == len(config.channels) else 2
            self.add_module(f"conv_block{i}", ConvBlock(inputs, outputs, pooling))
        self.fc1 = nn.Linear(config.channels[-1], config.channels[-1])
        self.fc_audioset = nn.Linear(config.channels[-1], config.classes)

    def forward(self, samples: Tensor) -> TaggedSound:
        x = self.logmel_extractor(self.spectrogram_extractor(samples))
        halvings = len(self.config.channels) - 1
        if x.shape[-2] < 1 << halvings:
            least = (1 << halvings) * self.config.hop / self.config.sample_rate
            raise MovaError(f"{samples.shape[-1]} samples are too few for this network: {least:.2f} s are needed")
        x = self.bn0(x.unsqueeze(-1).transpose(1, 2)).permute(0, 3, 2, 1)  # norm over mels; then [b, 1, frames, mels]
        for i in range(1, len(self.config.channels) + 1):
            x = self.get_submodule(f"conv_block{i}")(x)
        x = x.mean(3)
        embedding = torch.relu(self.fc1(x.amax(2) + x.mean(2)))
        return TaggedSound(embedding, self.fc_audioset(embedding))
