"""HTS-AT, a Swin transformer over a folded mel spectrum (Chen et al. 2022, arXiv 2202.00874), with CLAP's fusion.

The modules have the names of LAION's CLAP checkpoints. Only what leads to the embedding of a sound is computed; the
tables of a spectrum, the tagging head and the class map belong to the checkpoint and are not used here.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.scores.networks.spectrum_tables import MelTable, PowerSpectrumTables

# What is added to attention between parts of a shifted window that do not touch each other.
APART = -100.0


@dataclass(frozen=True)
class HtsatSizes:
    """The sound (Hz, samples) and the Swin transformer over an image of size x size, in which mel bands are folded."""

    sample_rate: int = 48000
    clip_samples: int = 480000
    n_fft: int = 1024
    hop: int = 480
    mels: int = 64
    low: float = 50.0
    high: float = 14000.0
    classes: int = 527
    size: int = 256
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8

    @property
    def folds(self) -> int:
        """Pieces of time that lie over each other in the image."""
        return self.size // self.mels

    @property
    def outputs(self) -> int:
        """Width of the last stage."""
        return self.width << (len(self.depths) - 1)


class AttentionalFusion(nn.Module):
    """2 w x + 2 (1 - w) y of maps [b, c, h, w]; w comes from their sum, locally and as a whole (arXiv 2009.14082)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = channels // 4
        self.local_att = nn.Sequential(*_bottleneck(channels, narrow))
        self.global_att = nn.Sequential(nn.AdaptiveAvgPool2d(1), *_bottleneck(channels, narrow))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = x + y
        weight = torch.sigmoid(self.local_att(both) + self.global_att(both))
        return 2 * x * weight + 2 * y * (1 - weight)


def _bottleneck(channels: int, narrow: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, narrow, 1),
        nn.BatchNorm2d(narrow),
        nn.ReLU(),
        nn.Conv2d(narrow, channels, 1),
        nn.BatchNorm2d(channels),
    ]


class FusedPatches(nn.Module):
    """Images [b, 4, size, size] -> patches [b, n, c]: of the whole sound, with three pieces of a long one fused in."""

    def __init__(self, sizes: HtsatSizes) -> None:
        super().__init__()
        patch, width = sizes.patch, sizes.width
        self.proj = nn.Conv2d(1, width, patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        # A piece is a third of the whole: its patches are three times as long, and stand where the whole's do.
        self.mel_conv2d = nn.Conv2d(1, width, (patch, 3 * patch), stride=(patch, 3 * patch))
        self.fusion_model = AttentionalFusion(width)

    def forward(self, images: Tensor, longer: Tensor) -> Tensor:
        x = self.proj(images[:, :1])
        if bool(longer.any()):
            pieces = images[longer, 1:]
            local = self.mel_conv2d(pieces.flatten(0, 1)[:, None]).unflatten(0, pieces.shape[:2])
            local = local.permute(0, 2, 3, 1, 4).flatten(3)
            local = F.pad(local, (0, x.shape[-1] - local.shape[-1]))  # with zeros, or cut
            x[longer] = self.fusion_model(x[longer], local)
        return self.norm(x.flatten(2).transpose(1, 2))


class WindowSelfAttention(nn.Module):
    """Attention within windows [b, n, c] with a bias for each pair of places, and a mask [windows, n, n] or None."""

    relative_position_index: Tensor

    def __init__(self, width: int, window: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        places = np.stack(np.divmod(np.arange(window * window), window))
        apart = places[:, :, None] - places[:, None, :] + window - 1
        index = apart[0] * (2 * window - 1) + apart[1]
        self.register_buffer("relative_position_index", torch.from_numpy(index))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is None:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        else:
            # The windows of one picture share a mask each: [b, windows, heads, n, c] under [windows, heads, n, n].
            q, k, v = (part.unflatten(0, (-1, len(mask))) for part in (q, k, v))
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias + mask[:, None]).flatten(0, 1)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, c))


class SwinMlp(nn.Module):
    """Feed-forward with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """Pre-norm attention in windows, shifted by half a window in every second block, then a feed-forward: [b, n, c]."""

    attn_mask: Tensor | None

    def __init__(self, width: int, resolution: int, heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.resolution = resolution
        # A picture no larger than a window is one window, and there is nothing to shift.
        self.window = min(window, resolution)
        self.shift = window // 2 if shifted and resolution > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowSelfAttention(width, self.window, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = SwinMlp(width, 4 * width)
        if self.shift:
            self.register_buffer("attn_mask", _shifted_mask(resolution, self.window, self.shift))
        else:
            self.attn_mask = None

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        side, window = self.resolution, self.window
        maps = self.norm1(x).view(b, side, side, c)
        if self.shift:
            maps = maps.roll((-self.shift, -self.shift), (1, 2))
        across = side // window
        tiles = maps.view(b, across, window, across, window, c).transpose(2, 3).reshape(-1, window * window, c)
        tiles = self.attn(tiles, self.attn_mask)
        maps = tiles.view(b, across, across, window, window, c).transpose(2, 3).reshape(b, side, side, c)
        if self.shift:
            maps = maps.roll((self.shift, self.shift), (1, 2))
        x = x + maps.view(b, n, c)
        return x + self.mlp(self.norm2(x))


def _shifted_mask(side: int, window: int, shift: int) -> Tensor:
    """[windows, n, n]: APART between places of a window that were not neighbours before the shift, 0 within."""
    part = np.digitize(np.arange(side), [side - window, side - shift])
    areas = (3 * part[:, None] + part).reshape(side // window, window, side // window, window)
    areas = areas.transpose(0, 2, 1, 3).reshape(-1, window * window)
    return torch.from_numpy(np.where(areas[:, None] != areas[:, :, None], APART, 0.0).astype(np.float32))


class PatchMerge(nn.Module):
    """Four neighbouring patches become one of twice the width: [b, h w, c] -> [b, h w / 4, 2 c]."""

    def __init__(self, width: int, resolution: int) -> None:
        super().__init__()
        self.resolution = resolution
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, c = x.shape
        half = self.resolution // 2
        # Order of the four: rows change fastest.
        four = x.view(b, half, 2, half, 2, c).permute(0, 1, 3, 4, 2, 5).reshape(b, half * half, 4 * c)
        return self.reduction(self.norm(four))


class SwinStage(nn.Module):
    """Blocks of one resolution, and the merging after them in all but the last stage."""

    def __init__(self, sizes: HtsatSizes, index: int) -> None:
        super().__init__()
        width, resolution = sizes.width << index, (sizes.size // sizes.patch) >> index
        self.blocks = nn.ModuleList(
            SwinBlock(width, resolution, sizes.heads[index], sizes.window, shifted=bool(i % 2))
            for i in range(sizes.depths[index])
        )
        last = index == len(sizes.depths) - 1
        self.downsample = None if last else PatchMerge(width, resolution)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Htsat(nn.Module):
    """Mel spectra in dB [b, 4, frames, mels] and which clips are long [b] -> embeddings [b, outputs].

    The first of the four is the whole sound, the others are pieces of a long one.
    """

    def __init__(self, sizes: HtsatSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.spectrogram_extractor = PowerSpectrumTables(sizes.n_fft, sizes.hop)
        self.logmel_extractor = MelTable(sizes.sample_rate, sizes.n_fft, sizes.mels, sizes.low, sizes.high)
        self.bn0 = nn.BatchNorm2d(sizes.mels)
        self.patch_embed = FusedPatches(sizes)
        self.layers = nn.ModuleList(SwinStage(sizes, i) for i in range(len(sizes.depths)))
        self.norm = nn.LayerNorm(sizes.outputs)
        rows = (sizes.size // sizes.patch >> (len(sizes.depths) - 1)) // sizes.folds
        self.tscam_conv = nn.Conv2d(sizes.outputs, sizes.classes, (rows, 3), padding=(0, 1))
        self.head = nn.Linear(sizes.classes, sizes.classes)

    def forward(self, mels: Tensor, longer: Tensor) -> Tensor:
        x = self.bn0(mels.transpose(1, 3)).transpose(1, 3)
        x = self.patch_embed(self.folded(x), longer)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x).mean(1)

    def folded(self, x: Tensor) -> Tensor:
        """Spectra [b, c, t, m] as images [b, c, size, size]: time stretched, cut into pieces, one under the other."""
        size, folds = self.sizes.size, self.sizes.folds
        if x.shape[2] > size * folds:
            raise MovaError(f"{x.shape[2]} frames of a spectrum are more than this network's {size * folds}")
        if x.shape[2] < size * folds:
            x = F.interpolate(x, (size * folds, x.shape[3]), mode="bicubic", align_corners=True)
        return x.transpose(2, 3).unflatten(3, (folds, size)).transpose(2, 3).flatten(2, 3)
