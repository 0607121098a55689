"""The operators' references: pure PyTorch that reads like the formulas. Their signatures are the operators' schemas.

Shapes are in einops letters: b batch, s tokens, d = h*e channels, h heads, e head dim. Statistics, rotations and
modulations are computed in float32 (float64 for float64 inputs) and rounded once to x's dtype. Modulation vectors
(shift, scale, gate) are [b, d] and may be of higher precision than x.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def up(x: Tensor) -> Tensor:
    """x in the precision of the maths: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


def _rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = up(x)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * up(weight)


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(up(x), x.shape[-1:], eps=eps)


def rms_norm_reference(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis: `x / sqrt(mean(x^2) + eps) * weight` (Zhang & Sennrich, 2019).

    x [b, s, d], weight [d].
    """
    return _rms(x, weight, eps).to(x.dtype)


def rms_norm_rope_reference(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool
) -> Tensor:
    """RMSNorm over the whole row, then rotary embedding (Su et al., 2021) of each head by angle cos/sin.

    x [b, s, h*e], weight [h*e], cos and sin [s, e/2] float32 or float64; returns x's shape and dtype.
    interleaved: pair i is channels (2i, 2i+1), as in the towers; otherwise (i, i + e/2), as in the bridge.
    """
    b, s, d = x.shape
    half = cos.shape[-1]
    y = _rms(x, weight, eps).view(b, s, d // (2 * half), 2 * half)
    cos, sin = cos.to(y.dtype).view(1, s, 1, half), sin.to(y.dtype).view(1, s, 1, half)
    first, second = (y[..., 0::2], y[..., 1::2]) if interleaved else (y[..., :half], y[..., half:])
    rotated = (first * cos - second * sin, first * sin + second * cos)
    y = torch.stack(rotated, -1).flatten(-2) if interleaved else torch.cat(rotated, -1)
    return y.reshape(b, s, d).to(x.dtype)


def norm_modulate_reference(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """Adaptive LayerNorm (Peebles & Xie, 2023): `layer_norm(x) * (1 + scale) + shift`.

    x [b, s, d]; shift, scale [b, d].
    """
    y = _layer_norm(x, eps)
    return (y * (1 + scale.to(y.dtype).unsqueeze(1)) + shift.to(y.dtype).unsqueeze(1)).to(x.dtype)


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm with weight and bias [d] over the last axis of x [b, s, d]."""
    y = _layer_norm(x, eps)
    return (y * weight.to(y.dtype) + bias.to(y.dtype)).to(x.dtype)


def gate_residual_reference(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y` without a gate. x, y [b, s, d]; gate [b, d]; returns x's dtype."""
    if gate is None:
        return (up(x) + up(y)).to(x.dtype)
    return (up(x) + gate.to(up(x).dtype).unsqueeze(1) * up(y)).to(x.dtype)


def gate_residual_norm_reference(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its affine LayerNorm: returns (r, layer_norm(r) * weight + bias), both [b, s, d]."""
    r = gate_residual_reference(x, y, gate)
    return r, layer_norm_reference(r, weight, bias, eps=eps)


def gate_residual_norm_modulate_reference(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its modulated LayerNorm: (r, layer_norm(r) * (1 + scale) + shift), both [b, s, d]."""
    r = gate_residual_reference(x, y, gate)
    return r, norm_modulate_reference(r, shift, scale, eps=eps)


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` with the tanh approximation (Hendrycks & Gimpel, 2016). x [b, s, d], bias [d]."""
    return F.gelu(up(x) + bias.to(up(x).dtype), approximate="tanh").to(x.dtype)


def linear_gelu_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x W^T + b)` with the tanh approximation (Hendrycks & Gimpel, 2016).

    x [b, s, i], weight [o, i], bias [o].
    """
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, *, scale: float
) -> Tensor:
    """`x W^T + b + scale * (x A^T) B^T` (Hu et al., 2021). x [b, s, i], weight [o, i], lora_a [r, i], lora_b [o, r]."""
    return F.linear(x, weight, bias) + F.linear(F.linear(x, lora_a), lora_b) * scale


def adapted(y: Tensor, x: Tensor, lora_a: Tensor | None, lora_b: Tensor | None, scale: float) -> Tensor:
    """`y + scale * (x A^T) B^T`, or y without an adapter (both None). x [b, s, i], y [b, s, o]."""
    if lora_a is None:
        return y
    assert lora_b is not None  # both or none
    return y + F.linear(F.linear(x, lora_a), lora_b) * scale


def _heads_first(x: Tensor) -> Tensor:
    return up(x).transpose(1, 2)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores [b, h, s, n], at least float32."""
    return _heads_first(q) @ _heads_first(k).transpose(-1, -2) / math.sqrt(q.shape[-1])


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(e)) v`, every query attends to every key.

    q [b, s, h, e], k and v [b, n, h, e] -> [b, s, h, e].
    """
    out = torch.softmax(_scores(q, k), -1) @ _heads_first(v)
    return out.transpose(1, 2).to(q.dtype)


def attention_lse_reference(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and the log-sum-exp of its scaled scores, lse [b, h, s] in float32 (float64 for float64).

    Forward only: a gradient taken through a merge of partial attentions is wrong, see `attention_backward`.
    """
    scores = _scores(q, k)
    lse = torch.logsumexp(scores, -1)
    # With no key at all the sum is empty: the output is zero and its weight in a merge exp(-inf).
    weights = torch.exp(scores - lse.masked_fill(lse == -math.inf, 0).unsqueeze(-1))
    return (weights @ _heads_first(v)).transpose(1, 2).to(q.dtype), lse


def attention_backward_reference(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv) for one shard of keys, given the *global* out [b, s, h, e] and lse [b, h, s].

    With p = exp(q k^T / sqrt(e) - lse): dv = p^T dout, ds = p * (dout v^T - rowsum(dout * out)), dq = ds k / sqrt(e),
    dk = ds^T q / sqrt(e) (Dao et al., 2022). Summed over shards dq is the whole gradient.
    """
    p = torch.exp(_scores(q, k) - lse.unsqueeze(-1))
    g = _heads_first(dout)
    rowsum = (g * _heads_first(out)).sum(-1, keepdim=True)
    ds = p * (g @ _heads_first(v).transpose(-1, -2) - rowsum) / math.sqrt(q.shape[-1])
    dq, dk, dv = ds @ _heads_first(k), ds.transpose(-1, -2) @ _heads_first(q), p.transpose(-1, -2) @ g
    return dq.transpose(1, 2).to(q.dtype), dk.transpose(1, 2).to(k.dtype), dv.transpose(1, 2).to(v.dtype)


# Kernels multiply in the inputs' dtype: what such a product takes from another is rounded to it. These forms are what
# the references may become by that, which the judgement of implementations allows (`Operator.rounded`).


def linear_gelu_rounded(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_gelu_reference` with the product rounded before the bias is added, as two kernels do it."""
    return bias_gelu_reference(F.linear(x, weight), bias)


# Factors of numbers that are rounded: softmax weights are rounded relative to the largest of a tile, which no two
# kernels choose alike. None: not rounded at all.
_GRIDS = (1.0, 1.3, 1.7, None)


def _on_grids(form: Callable) -> tuple[Callable, ...]:
    """A rounded form on each of several grids."""
    return tuple(functools.partial(form, grid=grid) for grid in _GRIDS)


def _round(x: Tensor, dtype: torch.dtype, grid: float | None) -> Tensor:
    return x if grid is None else (x * grid).to(dtype).to(x.dtype) / grid


def attention_lse_rounded(q: Tensor, k: Tensor, v: Tensor, grid: float | None) -> tuple[Tensor, Tensor]:
    """`attention_lse_reference` with the softmax's numerator rounded before its product with v, not in its sum."""
    scores = _scores(q, k)
    lse = torch.logsumexp(scores, -1)
    if k.shape[1] == 0:
        return torch.zeros_like(q), lse
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    out = _round(weights, q.dtype, grid) @ _heads_first(v) / weights.sum(-1, keepdim=True)
    return out.transpose(1, 2).to(q.dtype), lse


def attention_backward_rounded(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grid: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward_reference` with p rounded before its product with dout, and ds before those with k and q."""
    p = torch.exp(_scores(q, k) - lse.unsqueeze(-1))
    g = _heads_first(dout)
    ds = p * (g @ _heads_first(v).transpose(-1, -2) - (g * _heads_first(out)).sum(-1, keepdim=True))
    p, ds = _round(p, q.dtype, grid), _round(ds, q.dtype, grid) / math.sqrt(q.shape[-1])
    dq, dk, dv = ds @ _heads_first(k), ds.transpose(-1, -2) @ _heads_first(q), p.transpose(-1, -2) @ g
    return dq.transpose(1, 2).to(q.dtype), dk.transpose(1, 2).to(k.dtype), dv.transpose(1, 2).to(v.dtype)


class _RoundedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grid: float | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = attention_lse_rounded(q, k, v, grid)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.grid = grid
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return None, *attention_backward_rounded(dout, q, k, v, out, lse, ctx.grid)


def attention_rounded(q: Tensor, k: Tensor, v: Tensor, grid: float | None) -> Tensor:
    """`attention_reference` with the roundings of `attention_lse_rounded` and `attention_backward_rounded`."""
    return _RoundedAttention.apply(grid, q, k, v)


LINEAR_GELU_ROUNDED = (linear_gelu_rounded,)
ATTENTION_ROUNDED = _on_grids(attention_rounded)
ATTENTION_LSE_ROUNDED = _on_grids(attention_lse_rounded)
ATTENTION_BACKWARD_ROUNDED = _on_grids(attention_backward_rounded)


def quantize_rows_reference(x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of x * factor as float8_e4m3fn with a scale each: (values [.., d], scale [.., 1] float32).

    `scale = max|row| / 448`, 448 being the format's largest value (Micikevicius et al., 2022), and `values * scale` is
    nearly x. x [.., d] of any floating dtype, factor [d] or None. In float32 for every dtype; forward only.
    """
    x = x.detach().float() if factor is None else x.detach().float() * factor.detach().float()
    # A row of zeros has values of zero, whatever its scale.
    scale = (x.abs().amax(-1, keepdim=True) / 448).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / scale).to(torch.float8_e4m3fn), scale


class _Fp8Product(torch.autograd.Function):
    """x W^T with x quantised in rows; dx = g W with g quantised in rows, as if quantisation had derivative one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, weight_scale)
        values, scale = (up(t).to(up(x).dtype) for t in quantize_rows_reference(x))
        return values @ weight.to(values.dtype).T * scale * weight_scale.to(values.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale = ctx.saved_tensors
        # A scale of W's output rows cannot leave the sum over them: it goes into g before that is quantised.
        values, scale = (up(t).to(up(g).dtype) for t in quantize_rows_reference(g, weight_scale))
        return values @ weight.to(values.dtype) * scale, None, None


def fp8_linear_reference(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    *,
    scale: float,
) -> Tensor:
    """A linear layer whose frozen weight is held in fp8, with a low-rank adapter or (both None) without.

    `q(x) (weight * weight_scale)^T + b + scale * (x A^T) B^T`, q being `quantize_rows`. x [b, s, i], weight [o, i]
    float8_e4m3fn, weight_scale [o] float32, lora_a [r, i], lora_b [o, r]. The gradient of x takes q's derivative for
    one and quantises what arrives; the weight has none.
    """
    y = _Fp8Product.apply(x, weight, weight_scale)
    y = (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)
    return adapted(y, x, lora_a, lora_b, scale)


def merge_lse_reference(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Combine attentions over disjoint sets of keys.

    outs [n, b, s, h, e], lses [n, b, h, s] -> ([b, s, h, e], [b, h, s]).
    `lse = logsumexp_i(lse_i)`, `out = sum_i exp(lse_i - lse) out_i`. A shard without keys has lse = -inf and weight 0.
    Forward only.
    """
    lse = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - lse.masked_fill(lse == -math.inf, 0)).transpose(-1, -2).unsqueeze(-1)
    # 0 * NaN is NaN: what an empty shard holds must not matter.
    kept = torch.where(weights > 0, up(outs), 0)
    return (weights * kept).sum(0).to(outs.dtype), lse
