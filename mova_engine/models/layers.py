"""What both towers share: linear layers, attention, time and text embeddings, the transformer block, the head.

Sub-module names give the checkpoint's parameter names; the few classes that only exist for a name say so.
Blocks pass a `Stream`: the residual and an update not yet added to it, so that the addition and the norm that
follows can be one operator.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.config import TowerConfig
from mova_engine.ops import OpTable

Rope = tuple[Tensor, Tensor]


class Stream(NamedTuple):
    """A residual stream: x [b, s, d] and a pending update, so that its value is `x + gate * y` (y None: just x)."""

    x: Tensor
    y: Tensor | None = None
    gate: Tensor | None = None

    def settle(self, ops: OpTable) -> Tensor:
        """The stream's value."""
        return self.x if self.y is None else ops.gate_residual(self.x, self.y, self.gate)

    def settle_and_modulate(self, ops: OpTable, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(value, its modulated LayerNorm)."""
        if self.y is None:
            return self.x, ops.norm_modulate(self.x, shift, scale, eps=eps)
        return ops.gate_residual_norm_modulate(self.x, self.y, self.gate, shift, scale, eps=eps)

    def settle_and_norm(self, ops: OpTable, norm: "NormParameters", eps: float) -> tuple[Tensor, Tensor]:
        """(value, its affine LayerNorm)."""
        if self.y is None:
            return self.x, ops.layer_norm(self.x, norm.weight, norm.bias, eps=eps)
        return ops.gate_residual_norm(self.x, self.y, self.gate, norm.weight, norm.bias, eps=eps)


class NormParameters(nn.Module):
    """Weight (and bias) of a norm; the operators compute."""

    def __init__(self, dim: int, bias: bool, **factory) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, **factory))
        self.bias = nn.Parameter(torch.zeros(dim, **factory)) if bias else None


class Linear(nn.Linear):
    """nn.Linear that can carry a low-rank adapter: `x W^T + b + scale * (x A^T) B^T`."""

    def __init__(self, in_features: int, out_features: int, ops: OpTable, **factory) -> None:
        super().__init__(in_features, out_features, bias=True, **factory)
        self.ops = ops
        self.lora_A: nn.Linear | None = None
        self.lora_B: nn.Linear | None = None
        self.lora_scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_A is None:
            return super().forward(x)
        a, b = self.lora_A.weight, self.lora_B.weight
        return self.ops.lora_linear(x, self.weight, self.bias, a, b, scale=self.lora_scale)


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [cos | sin] of timesteps [b] (0..1000): frequencies 10000^(-i/half); float64 [b, dim]."""
    half = dim // 2
    frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64, device="cpu") / half)
    angles = torch.outer(timestep.to("cpu", torch.float64), frequencies)
    return torch.cat([angles.cos(), angles.sin()], -1)


def time_mlp(layers: nn.Sequential, x: Tensor) -> Tensor:
    """A time MLP in float32 whatever the parameters' dtype: in bf16 the timestep would lose its low digits."""
    for layer in layers:
        x = (
            layer(x)
            if not isinstance(layer, nn.Linear)
            else nn.functional.linear(x, layer.weight.float(), layer.bias.float())
        )
    return x


class SelfAttention(nn.Module):
    """q, k with RMSNorm over all heads and rotary embedding; attention; output projection."""

    def __init__(self, dim: int, num_heads: int, eps: float, ops: OpTable, attention: Callable, **factory) -> None:
        """attention: the operator in the role that it has here."""
        super().__init__()
        self.num_heads, self.eps, self.ops, self.attention = num_heads, eps, ops, attention
        self.q, self.k, self.v, self.o = (Linear(dim, dim, ops, **factory) for _ in range(4))
        self.norm_q, self.norm_k = (NormParameters(dim, bias=False, **factory) for _ in range(2))

    def forward(self, x: Tensor, rope: Rope, trace=None) -> Tensor:
        """x [b, s, d], rope (cos, sin) [s, e/2] -> [b, s, d]."""
        norm_rope = self.ops.rms_norm_rope
        q = norm_rope(self.q(x), self.norm_q.weight, *rope, eps=self.eps, interleaved=True)
        k = norm_rope(self.k(x), self.norm_k.weight, *rope, eps=self.eps, interleaved=True)
        if trace:
            trace("q_rope", q), trace("k_rope", k)
        heads = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, self.v(x)))
        return self.o(self.attention(*heads).flatten(-2))


class CrossAttention(SelfAttention):
    """Attention to the text: q and k are normalised, nothing is rotated."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [b, s, d], context [b, n, d] -> [b, s, d]."""
        q = self.ops.rms_norm(self.q(x), self.norm_q.weight, eps=self.eps)
        k = self.ops.rms_norm(self.k(context), self.norm_k.weight, eps=self.eps)
        heads = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, self.v(context)))
        return self.o(self.attention(*heads).flatten(-2))


class FeedForward(nn.Sequential):
    """Linear, tanh-GELU, linear; a Sequential so that the parameters are called ffn.0 and ffn.2."""

    def __init__(self, dim: int, ffn_dim: int, ops: OpTable, **factory) -> None:
        super().__init__(
            Linear(dim, ffn_dim, ops, **factory), nn.GELU(approximate="tanh"), Linear(ffn_dim, dim, ops, **factory)
        )
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        up, gelu, down = self
        if up.lora_A is not None:
            return down(gelu(up(x)))
        return down(self.ops.linear_gelu(x, up.weight, up.bias))


class Block(nn.Module):
    """A DiT block: modulated self-attention, text cross-attention, modulated feed-forward (Wan's form of Peebles &
    Xie).
    """

    def __init__(self, config: TowerConfig, ops: OpTable, self_attention: Callable, **factory) -> None:
        super().__init__()
        dim, heads, self.eps, self.ops = config.dim, config.num_heads, config.eps, ops
        self.self_attn = SelfAttention(dim, heads, self.eps, ops, self_attention, **factory)
        self.cross_attn = CrossAttention(dim, heads, self.eps, ops, ops.attention, **factory)
        self.norm3 = NormParameters(dim, bias=True, **factory)
        self.ffn = FeedForward(dim, config.ffn_dim, ops, **factory)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim, **factory) / dim**0.5)

    def forward(self, stream: Stream, t_mod: Tensor, context: Tensor, rope: Rope, trace=None) -> Stream:
        """stream of [b, s, d], t_mod [b, 6, d] float32, context [b, n, d], rope (cos, sin) -> stream with a pending
        update.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + t_mod).unbind(1)
        x, h = stream.settle_and_modulate(self.ops, shift1, scale1, self.eps)
        if trace:
            trace("self_attn_in", h)
        h = self.self_attn(h, rope, trace)
        if trace:
            trace("self_attn", h)
        x, h = Stream(x, h, gate1).settle_and_norm(self.ops, self.norm3, self.eps)
        h = self.cross_attn(h, context)
        if trace:
            trace("cross_attn", h)
        x, h = Stream(x, h).settle_and_modulate(self.ops, shift2, scale2, self.eps)
        h = self.ffn(h)
        if trace:
            trace("ffn", h)
        return Stream(x, h, gate2)


class Head(nn.Module):
    """Last norm, modulation by the time embedding itself, projection to patches."""

    def __init__(self, config: TowerConfig, patch_volume: int, ops: OpTable, **factory) -> None:
        super().__init__()
        self.eps, self.ops = config.eps, ops
        self.head = nn.Linear(config.dim, config.out_dim * patch_volume, **factory)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim, **factory) / config.dim**0.5)

    def forward(self, stream: Stream, t: Tensor) -> Tensor:
        """stream of [b, s, d], t [b, d] float32 (per sample) -> [b, s, out_dim * patch volume]."""
        shift, scale = (self.modulation.float() + t.unsqueeze(1)).unbind(1)
        return self.head(stream.settle_and_modulate(self.ops, shift, scale, self.eps)[1])
