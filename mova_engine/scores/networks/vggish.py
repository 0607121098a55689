"""VGGish, whose features FD_VGG compares (Hershey et al. 2017, arXiv 1609.09430), under the names of torchvggish.

The official file is `vggish-10086976.pth` of harritaylor/torchvggish. av-benchmark's FD_VGG reads the last layer before
its ReLU, and neither the principal components nor the 8 bits that YouTube-8M's features went through: as here.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import kaldi_filter_bank
from mova_engine.scores.features.mel import hann_window

SAMPLE_RATE = 16000
WINDOW, HOP, N_FFT = 400, 160, 512
BANDS, LOW, HIGH = 64, 125.0, 7500.0
LOG_OFFSET = 0.01
# Frames of an example, 0.96 s; examples do not overlap, and what is left at the end is not heard.
EXAMPLE = 96


class Vggish(nn.Module):
    """Examples of log mel magnitudes [b, 96, 64] -> features [b, 128]. widths, hidden: the official ones by default."""

    def __init__(self, widths: tuple[int, int, int, int] = (64, 128, 256, 512), hidden: int = 4096) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for convolutions, width in zip((1, 1, 2, 2), widths, strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)
        flat = channels * (EXAMPLE // 16) * (BANDS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(True), nn.Linear(hidden, hidden), nn.ReLU(True), nn.Linear(hidden, 128)
        )

    def forward(self, examples: Tensor) -> Tensor:
        # Channels vary fastest, as in the TensorFlow model that the weights come from.
        return self.embeddings(self.features(examples[:, None]).permute(0, 2, 3, 1).flatten(1))


def vggish_examples(samples: Tensor) -> Tensor:
    """Mono samples float32 [n] at 16 kHz -> log mel magnitudes of each whole 0.96 s, [examples, 96, 64].

    Frames are not centred: frame i begins at sample 160 i. MovaError where no example is whole.
    """
    if len(samples) < WINDOW + (EXAMPLE - 1) * HOP:
        raise MovaError(f"VGGish describes {EXAMPLE * HOP / SAMPLE_RATE:.2f} s at a time: the sound is shorter")
    frames = samples.unfold(0, WINDOW, HOP) * hann_window(WINDOW, samples)
    magnitude = torch.fft.rfft(F.pad(frames, (0, N_FFT - WINDOW))).abs()
    logarithm = (magnitude @ _bank().to(magnitude) + LOG_OFFSET).log()
    whole = len(logarithm) // EXAMPLE
    return logarithm[: whole * EXAMPLE].unflatten(0, (whole, EXAMPLE))


@lru_cache(1)
def _bank() -> Tensor:
    return kaldi_filter_bank(SAMPLE_RATE, N_FFT, BANDS, LOW, HIGH)
