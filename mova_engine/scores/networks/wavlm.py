"""WavLM's encoder (Chen et al. 2022, arXiv 2110.13900), base configuration, under the official names, for inference."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError


@dataclass(frozen=True)
class WavlmSizes:
    """convolutions: channels, width and step of each. buckets, distance: of positions that attention tells apart."""

    convolutions: tuple[tuple[int, int, int], ...] = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    position_kernel: int = 128
    position_groups: int = 16
    buckets: int = 320
    distance: int = 800

    @property
    def features(self) -> int:
        """Channels of the last convolution."""
        return self.convolutions[-1][0]


WAVLM_BASE = WavlmSizes()


class SoundConvolutions(nn.Module):
    """Samples [b, n] -> features [b, c, t]: strided convolutions with exact GELU, the first with a norm per channel."""

    def __init__(self, sizes: WavlmSizes) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        inputs = 1
        for i, (channels, kernel, stride) in enumerate(sizes.convolutions):
            layers: list[nn.Module] = [nn.Conv1d(inputs, channels, kernel, stride, bias=False), nn.Identity()]
            if i == 0:
                layers.append(nn.GroupNorm(channels, channels))
            self.conv_layers.append(nn.Sequential(*layers, nn.GELU()))
            inputs = channels

    def forward(self, samples: Tensor) -> Tensor:
        x = samples[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class PositionConvolution(nn.Module):
    """A grouped convolution [b, d, t] -> [b, d, t] whose weight is v g / |v|, a norm for each place of the kernel."""

    def __init__(self, sizes: WavlmSizes) -> None:
        super().__init__()
        width, kernel, self.groups = sizes.width, sizes.position_kernel, sizes.position_groups
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.ones(1, 1, kernel))
        self.weight_v = nn.Parameter(torch.randn(width, width // self.groups, kernel))

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight_v.shape[-1]
        weight = self.weight_v * (self.weight_g / self.weight_v.norm(dim=(0, 1), keepdim=True))
        x = F.conv1d(x, weight, self.bias, padding=kernel // 2, groups=self.groups)
        return x[..., :-1] if kernel % 2 == 0 else x


class GatedPositionAttention(nn.Module):
    """Self-attention [b, t, d] with a bias by distance [heads, t, t] that each layer gates by its own input."""

    def __init__(self, sizes: WavlmSizes, has_positions: bool) -> None:
        super().__init__()
        width, self.heads = sizes.width, sizes.heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.grep_linear = nn.Linear(width // sizes.heads, 8)
        self.grep_a = nn.Parameter(torch.ones(1, sizes.heads, 1, 1))
        if has_positions:
            self.relative_attention_bias = nn.Embedding(sizes.buckets, sizes.heads)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
        split = (*x.shape[:2], self.heads, -1)
        halves = torch.sigmoid(self.grep_linear(x.view(split).transpose(1, 2)).unflatten(-1, (2, 4)).sum(-1))
        first, second = halves.chunk(2, -1)
        gate = first * (second * self.grep_a - 1.0) + 2.0
        mask = (gate * bias).masked_fill_(padding[:, None, None], -math.inf)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class WavlmLayer(nn.Module):
    """Attention and feed-forward, each normalised after its residual."""

    def __init__(self, sizes: WavlmSizes, has_positions: bool) -> None:
        super().__init__()
        self.self_attn = GatedPositionAttention(sizes, has_positions)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.fc1 = nn.Linear(sizes.width, sizes.hidden)
        self.fc2 = nn.Linear(sizes.hidden, sizes.width)
        self.final_layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, bias: Tensor, padding: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, bias, padding))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class WavlmLayers(nn.Module):
    """Features [b, t, d] and what is padding [b, t] -> the layers' input and every layer's output, each [b, t, d]."""

    def __init__(self, sizes: WavlmSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.pos_conv = nn.Sequential(PositionConvolution(sizes), nn.Identity(), nn.GELU())
        self.layers = nn.ModuleList(WavlmLayer(sizes, has_positions=i == 0) for i in range(sizes.depth))
        self.layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, padding: Tensor) -> list[Tensor]:
        x = x.masked_fill(padding[..., None], 0.0)
        x = self.layer_norm(x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2))
        bias = self.distance_bias(x.shape[1])
        found = [x]
        for layer in self.layers:
            found.append(layer(found[-1], bias, padding))
        return found

    def distance_bias(self, length: int) -> Tensor:
        """The first layer's bias for each distance between key and query, for all layers: [heads, length, length]."""
        table = self.layers[0].get_submodule("self_attn.relative_attention_bias").get_parameter("weight")
        places = torch.arange(length, device=table.device)
        buckets = distance_buckets(places[None] - places[:, None], self.sizes.buckets, self.sizes.distance)
        return table[buckets].permute(2, 0, 1)


def distance_buckets(distances: Tensor, buckets: int, most: int) -> Tensor:
    """T5's buckets of signed distances: one half for each sign; small ones apart, larger ones by their logarithm.

    The logarithms are float32's, as in the official code: another rounding would put a distance on a bucket's edge into
    its neighbour.
    """
    half = buckets // 2
    exact = half // 2
    size = distances.abs()
    far = (size.float() / exact).log() / math.log(most / exact) * (half - exact)
    far = (exact + far.clamp_min(0).long()).clamp_max(half - 1)
    return (distances > 0).long() * half + torch.where(size < exact, size, far)


class Wavlm(nn.Module):
    """Samples [b, n] at 16 kHz and which are padding [b, n] -> outputs of all layers, and which frames are [b, t]."""

    def __init__(self, sizes: WavlmSizes) -> None:
        super().__init__()
        self.mask_emb = nn.Parameter(torch.zeros(sizes.width))  # of training: stands for features that are hidden
        self.feature_extractor = SoundConvolutions(sizes)
        self.post_extract_proj = nn.Linear(sizes.features, sizes.width)
        self.encoder = WavlmLayers(sizes)
        self.layer_norm = nn.LayerNorm(sizes.features)
        self.least = 1
        for _, kernel, stride in reversed(sizes.convolutions):
            self.least = (self.least - 1) * stride + kernel

    def forward(self, samples: Tensor, padding: Tensor) -> tuple[list[Tensor], Tensor]:
        n = samples.shape[1]
        if n < self.least:
            raise MovaError(f"{n} samples are too few for this network: {self.least} are needed")
        features = self.feature_extractor(samples).transpose(1, 2)
        padded = padded_frames(padding, features.shape[1])
        return self.encoder(self.post_extract_proj(self.layer_norm(features)), padded), padded


def padded_frames(padding: Tensor, frames: int) -> Tensor:
    """Which frames are padding [b, frames]: those with nothing else in their share of the samples' padding [b, n]."""
    n = padding.shape[1]
    return padding[:, : n - n % frames].unflatten(1, (frames, -1)).all(-1)
