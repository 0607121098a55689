"""EAT, a transformer that tags sound events (Chen et al. 2024, arXiv 2401.03497), under the names of its checkpoints.

Only tagging is here: the released fine-tuned models predict from the class token.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError


@dataclass(frozen=True)
class EatSizes:
    """Widths and counts. frames: of the mel spectrum, `target_length`; longest: patches of time that have positions."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    classes: int = 527
    frames: int = 1024
    longest: int = 768
    mlp_ratio: float = 4.0
    eps: float = 1e-6
    bands: int = 128
    patch: int = 16


EAT_BASE = EatSizes()
EAT_LARGE = EatSizes(width=1024, depth=24, heads=16)


# What the checkpoint of Hugging Face calls the parts of the spectrum's encoder and the last layers.
_PUBLISHED = {
    "model.local_encoder.": "model.modality_encoders.IMAGE.local_encoder.",
    "model.extra_tokens": "model.modality_encoders.IMAGE.extra_tokens",
    "model.fixed_positional_encoder.": "model.modality_encoders.IMAGE.fixed_positional_encoder.",
    "model.pre_norm.": "model.modality_encoders.IMAGE.context_encoder.norm.",
    "model.fc_norm.": "fc_norm.",
    "model.head.": "head.",
}


def named_by_fairseq(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the first release, which are this module's, from those or from Hugging Face's."""
    found = {}
    for name, tensor in weights.items():
        before = next((each for each in _PUBLISHED if name.startswith(each)), None)
        found[name if before is None else _PUBLISHED[before] + name.removeprefix(before)] = tensor
    return found


class EatAttention(nn.Module):
    """Self-attention [b, n, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class EatMlp(nn.Module):
    """Feed-forward with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EatBlock(nn.Module):
    """Attention and feed-forward, each normalised after its residual."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.attn = EatAttention(sizes.width, sizes.heads)
        self.norm2 = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.mlp = EatMlp(sizes.width, int(sizes.width * sizes.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))


class EatPatches(nn.Module):
    """Spectra [b, 1, t, bands] -> patches [b, n, d], the bands of a time one after the other."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, sizes.width, sizes.patch, stride=sizes.patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class FixedPositions(nn.Module):
    """The table `positions` [1, longest * bands / patch, d], part of the checkpoint."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        rows = sizes.bands // sizes.patch
        time, band = np.divmod(np.arange(sizes.longest * rows), rows)
        table = np.concatenate([_sine_cosine(band, sizes.width // 2), _sine_cosine(time, sizes.width // 2)], 1)
        self.positions = nn.Parameter(torch.from_numpy(table.astype(np.float32))[None], requires_grad=False)


def _sine_cosine(places: np.ndarray, width: int) -> np.ndarray:
    angles = np.outer(places, 10000.0 ** (-np.arange(width // 2) / (width / 2)))
    return np.concatenate([np.sin(angles), np.cos(angles)], 1)


class ContextNorm(nn.Module):
    """The norm before the blocks."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.width, eps=sizes.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class SpectrumEncoder(nn.Module):
    """Spectra [b, t, bands] -> the class token and patches with positions, normalised: [b, 1 + n, d]."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.extra_tokens = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.local_encoder = EatPatches(sizes)
        self.fixed_positional_encoder = FixedPositions(sizes)
        self.context_encoder = ContextNorm(sizes)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.local_encoder(mel[:, None])
        positions = self.fixed_positional_encoder.positions
        if x.shape[1] > positions.shape[1]:
            most = self.sizes.longest * self.sizes.patch
            raise MovaError(f"{mel.shape[1]} frames of a spectrum are more than this network's {most}")
        x = x + positions[:, : x.shape[1]]
        return self.context_encoder(torch.cat([self.extra_tokens.expand(len(x), -1, -1), x], 1))


class EatBackbone(nn.Module):
    """Spectra [b, t, bands] -> [b, 1 + n, d]; the checkpoint names the spectrum's encoder IMAGE."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.modality_encoders = nn.ModuleDict({"IMAGE": SpectrumEncoder(sizes)})
        self.blocks = nn.ModuleList(EatBlock(sizes) for _ in range(sizes.depth))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.modality_encoders["IMAGE"](mel)
        for block in self.blocks:
            x = block(x)
        return x


class Eat(nn.Module):
    """Normalised mel spectra [b, frames, bands] (`scores.sound_events.eat_input`) -> logits [b, classes]."""

    def __init__(self, sizes: EatSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.model = EatBackbone(sizes)
        self.fc_norm = nn.LayerNorm(sizes.width, eps=sizes.eps)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, mel: Tensor) -> Tensor:
        return self.head(self.fc_norm(self.model(mel)[:, 0]))
