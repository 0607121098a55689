"""PaSST, a transformer that tags sound (Koutini et al. 2022, arXiv 2110.05069), under the names of its checkpoints.

The official file is `passt-s-f128-p16-s10-ap.476-swa.pt` of kkoutini/PaSST; FD_PaSST, KL_PaSST and the inception score
of av-benchmark are of its features and logits. Patchout, which leaves out patches in training, does not exist here.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.scores.features.kaldi import kaldi_filter_bank
from mova_engine.scores.networks.cnn14 import TaggedSound

SAMPLE_RATE = 32000
WINDOW, HOP, N_FFT = 800, 320, 1024
BANDS, HIGH = 128, 15000.0
PREEMPHASIS = 0.97
LOG_OFFSET, MEAN, SCALE = 1e-5, -4.5, 5.0
PATCH, STRIDE = 16, 10
# Patches in time and in frequency that have positions: of 10 s, and of 128 bands.
TIMES, ROWS = 99, 12


@dataclass(frozen=True)
class PasstSizes:
    """Widths and counts."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    classes: int = 527


class PasstAttention(nn.Module):
    """Self-attention [b, n, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class PasstBlock(nn.Module):
    """Attention and feed-forward, each of what is normalised before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = PasstAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class PasstPatches(nn.Module):
    """Overlapping patches of a spectrum [b, 1, bands, frames] -> [b, d, rows, times]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, PATCH, STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Passt(nn.Module):
    """Spectra of `passt_spectrum` [b, 128, frames] of up to 10 s -> features [b, width] and logits [b, classes]."""

    def __init__(self, sizes: PasstSizes | None = None) -> None:
        super().__init__()
        sizes = sizes or PasstSizes()
        width = sizes.width
        self.patch_embed = PasstPatches(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.new_pos_embed = nn.Parameter(torch.zeros(1, 2, width))
        self.freq_new_pos_embed = nn.Parameter(torch.zeros(1, width, ROWS, 1))
        self.time_new_pos_embed = nn.Parameter(torch.zeros(1, width, 1, TIMES))
        self.blocks = nn.Sequential(*(PasstBlock(width, sizes.heads) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sizes.classes))
        # Of the distilled token alone: in the official checkpoint, read by nothing.
        self.head_dist = nn.Linear(width, sizes.classes)

    def forward(self, spectra: Tensor) -> TaggedSound:
        patches = self.patch_embed(spectra[:, None])
        times = patches.shape[-1]
        if times > TIMES:
            raise MovaError(f"PaSST hears 10 s at most ({TIMES} patches in time), got {times} patches")
        patches = patches + self.time_new_pos_embed[..., :times] + self.freq_new_pos_embed
        tokens = torch.cat((self.cls_token, self.dist_token), 1) + self.new_pos_embed
        x = torch.cat((tokens.expand(len(patches), -1, -1), patches.flatten(2).transpose(1, 2)), 1)
        x = self.norm(self.blocks(x))
        features = (x[:, 0] + x[:, 1]) / 2
        return TaggedSound(features, self.head(features))


def passt_spectrum(samples: Tensor) -> Tensor:
    """Mono samples float32 [n] at 32 kHz -> normalised log mel energies [128, 1 + (n - 1) // 320].

    x[i] - 0.97 x[i - 1] from the second sample on, centred frames of 800 samples under a symmetric Hann window.
    MovaError where the sound is too short to be reflected at its ends.
    """
    if len(samples) < N_FFT:
        raise MovaError(f"{len(samples)} samples are too few for PaSST: {N_FFT} are needed")
    emphasised = samples[1:] - PREEMPHASIS * samples[:-1]
    window = torch.hann_window(WINDOW, periodic=False, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(emphasised, N_FFT, HOP, WINDOW, window, center=True, return_complex=True)
    energies = _bank().to(samples) @ spectrum.abs().square()
    return ((energies + LOG_OFFSET).log() - MEAN) / SCALE


@lru_cache(1)
def _bank() -> Tensor:
    return kaldi_filter_bank(SAMPLE_RATE, N_FFT, BANDS, 0.0, HIGH).T.contiguous()
