"""ImageBind's towers for pictures and for sound: embeddings of both in one space.

Girdhar et al., "ImageBind: One Embedding Space To Bind Them All" (arXiv 2305.05665). Parameters carry the names of the
official checkpoint `imagebind_huge.pth` (facebookresearch/ImageBind; weights CC BY-NC-SA 4.0, not for commercial use).
The checkpoint's four other modalities are not built: `towers_of` leaves their parameters out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mova_engine.errors import MovaError

SIDE = 224
_UNREAD = re.compile(r"modality_(preprocessors|trunks|heads|postprocessors)\.(text|depth|thermal|imu)\.")
# The largest factor that a learned scale of embeddings may reach.
_MAX_SCALE = 100.0
# Of embeddings of sound in the official model.
_AUDIO_SCALE = 20.0


@dataclass(frozen=True)
class ImageBindConfig:
    """The sizes; the defaults are imagebind_huge's."""

    vision_embed_dim: int = 1280
    vision_num_blocks: int = 32
    vision_num_heads: int = 16
    audio_embed_dim: int = 768
    audio_num_blocks: int = 12
    audio_num_heads: int = 12
    out_embed_dim: int = 1024
    video_frames: int = 2
    kernel_size: tuple[int, int, int] = (2, 14, 14)
    audio_kernel_size: int = 16
    audio_stride: int = 10
    audio_num_mel_bins: int = 128
    audio_target_len: int = 204


class ImageBind(nn.Module):
    """Embeddings of single inputs, of length 1 for pictures and of a fixed length (20) for sound."""

    def __init__(self, config: ImageBindConfig | None = None) -> None:
        super().__init__()
        c = config or ImageBindConfig()
        places = (c.video_frames // c.kernel_size[0]) * (SIDE // c.kernel_size[1]) * (SIDE // c.kernel_size[2])
        bands, columns = (
            (n - c.audio_kernel_size) // c.audio_stride + 1 for n in (c.audio_num_mel_bins, c.audio_target_len)
        )
        # The official sequence begins with a module that doubles single pictures; ours are pairs already.
        video = nn.Conv3d(3, c.vision_embed_dim, c.kernel_size, c.kernel_size, bias=False)
        sound = nn.Conv2d(1, c.audio_embed_dim, c.audio_kernel_size, c.audio_stride, bias=False)
        self.modality_preprocessors = nn.ModuleDict(
            {
                "vision": _Tokens(_Stem(nn.Sequential(nn.Identity(), video)), places, c.vision_embed_dim),
                "audio": _Tokens(_Stem(sound, nn.LayerNorm(c.audio_embed_dim)), bands * columns, c.audio_embed_dim),
            }
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": _Trunk(c.vision_embed_dim, c.vision_num_blocks, c.vision_num_heads, norm_first=True),
                "audio": _Trunk(c.audio_embed_dim, c.audio_num_blocks, c.audio_num_heads, extra_key=True),
            }
        )
        widths = {"vision": c.vision_embed_dim, "audio": c.audio_embed_dim}
        self.modality_heads = nn.ModuleDict({name: _head(width, c.out_embed_dim) for name, width in widths.items()})
        self.modality_postprocessors = nn.ModuleDict(
            {"vision": _Normalise(), "audio": nn.Sequential(_Normalise(), _Scale(_AUDIO_SCALE))}
        )

    def vision(self, pairs: Tensor) -> Tensor:
        """Pairs of pictures [n, 3, 2, 224, 224], normalised by CLIP's mean and deviation -> [n, out], length 1."""
        return self._embed("vision", pairs)

    def audio(self, mel: Tensor) -> Tensor:
        """Normalised mel energies [n, 1, 128, 204] -> [n, out], length 20."""
        return self._embed("audio", mel)

    def _embed(self, modality: str, x: Tensor) -> Tensor:
        parts = (self.modality_preprocessors, self.modality_trunks, self.modality_heads, self.modality_postprocessors)
        for part in parts:
            x = part[modality](x)
        return x


def towers_of(checkpoint: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict without the modalities that no score reads: text, depth, thermal, inertia."""
    return {name: x for name, x in checkpoint.items() if not _UNREAD.match(name)}


class _Stem(nn.Module):
    def __init__(self, proj: nn.Module, norm_layer: nn.Module | None = None) -> None:
        super().__init__()
        self.proj = proj
        self.norm_layer = norm_layer

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x).flatten(2).transpose(1, 2)
        return tokens if self.norm_layer is None else self.norm_layer(tokens)


class _Positions(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))


class _Tokens(nn.Module):
    """Patches after a first token, with their positions: [n, 1 + patches, width]."""

    def __init__(self, stem: _Stem, patches: int, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.rgbt_stem = stem
        self.pos_embedding_helper = _Positions(1 + patches, width)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.rgbt_stem(x)
        positions = self.pos_embedding_helper.pos_embed
        if patches.shape[1] + 1 != positions.shape[1]:
            raise MovaError(
                f"ImageBind reads {positions.shape[1] - 1} patches; an input {list(x.shape)} has {patches.shape[1]}"
            )
        return torch.cat((self.cls_token.expand(len(x), -1, -1), patches), 1) + positions


class _Trunk(nn.Module):
    def __init__(
        self, width: int, blocks: int, heads: int, *, norm_first: bool = False, extra_key: bool = False
    ) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(nn.LayerNorm(width, eps=1e-6) if norm_first else nn.Identity())
        self.blocks = nn.Sequential(*(_ImageBindBlock(width, heads, extra_key) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pre_transformer_layer(x))


class _ImageBindBlock(nn.Module):
    def __init__(self, width: int, heads: int, extra_key: bool) -> None:
        super().__init__()
        self.attn = _Attention(width, heads, extra_key)
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm_1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm_2(x))))


class _Attention(nn.Module):
    """torch's MultiheadAttention of a sequence with itself; sound has one learned key and value more."""

    def __init__(self, width: int, heads: int, extra_key: bool) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.bias_k = nn.Parameter(torch.zeros(1, 1, width)) if extra_key else None
        self.bias_v = nn.Parameter(torch.zeros(1, 1, width)) if extra_key else None
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat((t, e.expand(len(x), -1, -1)), 1) for t, e in ((k, self.bias_k), (v, self.bias_v)))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        made = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(made.transpose(1, 2).flatten(2))


class _First(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class _Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


class _Scale(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("log_logit_scale", torch.tensor(scale).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.get_buffer("log_logit_scale").exp().clamp(max=_MAX_SCALE) * x


def _head(width: int, out: int) -> nn.Sequential:
    # The norm is over each token by itself, so the first one can be taken before it or after.
    return nn.Sequential(nn.LayerNorm(width, eps=1e-6), _First(), nn.Linear(width, out, bias=False))
