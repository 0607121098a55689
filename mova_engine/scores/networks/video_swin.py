"""Video Swin-T with gated relative position biases, for pictures that are spliced from fragments.

Liu et al., "Video Swin Transformer" (arXiv 2106.13230); Wu et al., FAST-VQA (arXiv 2207.02595): within a fragment and
across fragments, positions have biases of their own. As published, the two tables are mixed by the distance between
fragments (0, 1, 2, ...), not by whether they differ.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int, int]
_WINDOW: Size = (8, 7, 7)
_PATCH: Size = (2, 4, 4)
_WIDTH = 96
_DEPTHS = (2, 2, 6, 2)
_HEADS = (3, 6, 12, 24)
# Stages whose windows can hold several fragments.
_GATED = (True, True, True, False)
_EXCLUDED = -100.0


class VideoSwin(nn.Module):
    """Pictures [b, 3, t, h, w] -> features [b, 768, t / 2, h / 32, w / 32]. Within, channels come last."""

    width = _WIDTH * 2 ** (len(_DEPTHS) - 1)

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed()
        last = len(_DEPTHS) - 1
        self.layers = nn.ModuleList(
            _Stage(_WIDTH * 2**i, _DEPTHS[i], _HEADS[i], gated=_GATED[i], merge=i < last) for i in range(last + 1)
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x).permute(0, 4, 1, 2, 3)


class _PatchEmbed(nn.Module):
    """[b, 3, t, h, w], padded with zeros to whole patches -> [b, t / 2, h / 4, w / 4, 96]."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, _WIDTH, _PATCH, _PATCH)
        self.norm = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = (-size % patch for size, patch in zip(x.shape[2:], _PATCH, strict=True))
        return self.norm(self.proj(F.pad(x, (0, w, 0, h, 0, t))).permute(0, 2, 3, 4, 1))


class _Stage(nn.Module):
    def __init__(self, width: int, depth: int, heads: int, *, gated: bool, merge: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_SwinBlock(width, heads, shifted=i % 2 == 1, gated=gated) for i in range(depth))
        self.downsample = _Merge(width) if merge else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class _Merge(nn.Module):
    """2 x 2 places become one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2] % 2, x.shape[3] % 2
        x = F.pad(x, (0, 0, 0, w, 0, h))
        quarters = (x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2])
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class _SwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, *, shifted: bool, gated: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.norm1 = nn.LayerNorm(width)
        self.attn = _WindowAttention(width, heads, gated=gated)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[1:4]
        # A dimension that fits into one window is not divided, nor shifted.
        window: Size = (min(t, _WINDOW[0]), min(h, _WINDOW[1]), min(w, _WINDOW[2]))
        shift: Size = tuple(
            full // 2 if self.shifted and size > full else 0 for size, full in zip((t, h, w), _WINDOW, strict=True)
        )  # pyright: ignore[reportAssignmentType]
        pt, ph, pw = (-size % full for size, full in zip((t, h, w), window, strict=True))
        padded = F.pad(self.norm1(x), (0, 0, 0, pw, 0, ph, 0, pt))
        size: Size = (t + pt, h + ph, w + pw)
        rolled = torch.roll(padded, [-s for s in shift], (1, 2, 3)) if any(shift) else padded
        made = _join(self.attn(_split(rolled, window), size, window, shift), size, window)
        made = torch.roll(made, shift, (1, 2, 3)) if any(shift) else made
        x = x + made[:, :t, :h, :w]
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class _WindowAttention(nn.Module):
    """Attention within windows [b, windows, tokens, width], with a bias for each pair of positions."""

    def __init__(self, width: int, heads: int, *, gated: bool) -> None:
        super().__init__()
        self.heads = heads
        entries = (2 * _WINDOW[0] - 1) * (2 * _WINDOW[1] - 1) * (2 * _WINDOW[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(entries, heads))
        self.fragment_position_bias_table = nn.Parameter(torch.zeros(entries, heads)) if gated else None
        self.register_buffer("relative_position_index", _position_index())
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Size, window: Size, shift: Size) -> Tensor:
        batch, windows, tokens, width = x.shape
        q, k, v = self.qkv(x).unflatten(3, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        bias = self._bias(tokens, size, window, shift, x.device)  # [windows or 1, heads, tokens, tokens]
        bias = bias.expand(windows, -1, -1, -1).flatten(0, 1)[None]
        made = F.scaled_dot_product_attention(*(t.flatten(1, 2) for t in (q, k, v)), attn_mask=bias)
        made = made.unflatten(1, (windows, self.heads)).transpose(2, 3)
        return self.proj(made.reshape(batch, windows, tokens, width))

    def _bias(self, tokens: int, size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
        # Of a smaller window the published code takes the first rows and columns of the full one's index.
        index = self.get_buffer("relative_position_index")[:tokens, :tokens]
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]
        if self.fragment_position_bias_table is not None:
            distance = _fragment_distances(size, window, shift, device)[:, None]
            other = self.fragment_position_bias_table[index].permute(2, 0, 1)[None]
            bias = other + (bias - other) * distance
        if any(shift):
            bias = bias + _excluded(size, window, shift, device)[:, None]
        return bias


def _position_index() -> Tensor:
    """For each pair of positions in a full window, the entry of the tables: int64 [392, 392]."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in _WINDOW))
    difference = places[:, None] - places[None] + torch.tensor(_WINDOW) - 1
    spans = torch.tensor([(2 * _WINDOW[1] - 1) * (2 * _WINDOW[2] - 1), 2 * _WINDOW[2] - 1, 1])
    return (difference * spans).sum(-1)


def _split(x: Tensor, window: Size) -> Tensor:
    """[b, t, h, w, c] -> [b, windows, tokens, c]."""
    b, t, h, w, c = x.shape
    x = x.reshape(b, t // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(1, 3).flatten(2, 4)


def _join(x: Tensor, size: Size, window: Size) -> Tensor:
    """The inverse of `_split`, for an input of this size."""
    counts = [full // part for full, part in zip(size, window, strict=True)]
    x = x.unflatten(2, window).unflatten(1, counts)
    return x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(len(x), *size, x.shape[-1])


@lru_cache(16)
def _fragment_distances(size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """How many fragments apart two tokens of a window are, rows and columns added: float32 [windows, tokens, tokens].

    The picture is taken to hold as many fragments in a row as a window has columns (7).
    """
    _, rows, columns = (
        torch.div(torch.arange(full) * parts, full, rounding_mode="floor")
        for full, parts in zip(size, (1, window[1], window[2]), strict=True)
    )
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).expand(size[0], -1, -1, -1)[None]
    grid = _split(torch.roll(grid, [-s for s in shift], (1, 2, 3)), window)[0]
    return (grid[:, None] - grid[:, :, None]).abs().sum(-1).to(device, torch.float32)


@lru_cache(16)
def _excluded(size: Size, window: Size, shift: Size, device: torch.device) -> Tensor:
    """-100 where two tokens of a shifted window come from opposite edges, else 0: float32 [windows, tokens, tokens]."""
    regions = []
    for full, part, by in zip(size, window, shift, strict=True):
        place = torch.arange(full)
        # The last window of a shifted dimension holds its own end and what was rolled in from the beginning.
        regions.append((place >= full - part).long() + (place >= full - by).long() if by else torch.zeros_like(place))
    t, h, w = torch.meshgrid(*regions, indexing="ij")
    region = _split((9 * t + 3 * h + w)[None, ..., None], window)[0, ..., 0]
    return _EXCLUDED * (region[:, None] != region[:, :, None]).to(device, torch.float32)
