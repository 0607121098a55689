"""Norms, rotary embedding, modulation, gates and GELU on rows of activations.

Shapes: x and y [b, s, d] in float32, bfloat16 or float16; weight and bias [d]; shift, scale and gate [b, d], float32.
Where torch_npu has no fused operator with a gradient, an autograd function keeps x and y as they came, in their own
narrow dtype, and computes in float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# npu_rotary_mul: batch times heads below the first, head dim below the second and even.
ROTARY_ROWS, ROTARY_HEAD_DIM = 1000, 896
# Elements that GELU takes in float32 at once: few beside the hidden activations of a clip, many beside what a call of
# the device costs.
_GELU_CHUNK = 1 << 25


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis by `npu_rms_norm`."""
    return torch.ops.npu.npu_rms_norm(x, weight.to(x.dtype), eps)[0]


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm over all heads by `npu_rms_norm`, then rotary embedding of each by `npu_rotary_mul`.

    cos and sin [s, e/2]. In float32: both operators round what they return to the dtype of what they take, and the
    second demands its tables in that dtype. ValueError beyond the operator's limits.
    """
    head_dim = 2 * cos.shape[-1]
    heads = x.shape[-1] // head_dim
    if head_dim >= ROTARY_HEAD_DIM or heads >= ROTARY_ROWS:
        raise ValueError(
            f"npu_rotary_mul takes head dims below {ROTARY_HEAD_DIM} and fewer than {ROTARY_ROWS} heads, got "
            f"{heads} heads of {head_dim}; the reference takes them"
        )
    return _RmsNormRope.apply(x, weight, cos, sin, eps, interleaved)


class _RmsNormRope(torch.autograd.Function):
    """Keeps x as it came and a statistic a row. A rotation's gradient is the rotation back."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool) -> Tensor:
        y, rstd = torch.ops.npu.npu_rms_norm(x.float(), weight.float(), eps)
        ctx.save_for_backward(x, weight, rstd, cos, sin)
        ctx.interleaved = interleaved
        return _rotated(y, cos.float(), sin.float(), interleaved).to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd, cos, sin = ctx.saved_tensors
        grad = _rotated(grad.float(), cos.float(), -sin.float(), ctx.interleaved)
        dx, dweight = torch.ops.npu.npu_rms_norm_backward(grad, x.float(), weight.float(), rstd)
        return dx.to(x.dtype), dweight.to(weight.dtype), None, None, None, None


def _rotated(y: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Each head of y [b, s, h*e] turned by the angles of cos and sin [s, e/2], all float32."""
    b, s, d = y.shape
    head_dim = 2 * cos.shape[-1]
    heads = d // head_dim
    cos, sin = (_both_of_a_pair(table, interleaved) for table in (cos, sin))
    # The layout [b, s, h, e] with tables [1, s, 1, e]. Samples beyond the operator's limit become tokens.
    if b * heads >= ROTARY_ROWS:
        cos, sin = cos.repeat(b, 1), sin.repeat(b, 1)
    tables = (table.view(1, -1, 1, head_dim) for table in (cos, sin))
    mode = "interleave" if interleaved else "half"
    y = y.reshape(-1, cos.shape[0], heads, head_dim)
    return torch.ops.npu.npu_rotary_mul(y, *tables, mode).view(b, s, d)


def _both_of_a_pair(table: Tensor, interleaved: bool) -> Tensor:
    """[s, e/2] -> [s, e]: the entry of both channels of each pair."""
    return table.repeat_interleave(2, -1) if interleaved else torch.cat((table, table), -1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm with weight and bias over the last axis."""
    return _LayerNorm.apply(x, weight, bias, eps)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`."""
    weight = 1 + scale.float()
    if x.shape[0] == 1:
        # One sample: the modulation is the norm's own weight and bias, and everything is one kernel.
        return _LayerNorm.apply(x, weight[0], shift[0], eps)
    return _LayerNorm.apply(x, weight, shift, eps)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` in the tanh form by `npu_gelu`, in float32: the sum is not rounded before. Rows are taken in
    chunks, so that no tensor of x's size is in float32.
    """
    return _BiasGelu.apply(x, bias)


class _BiasGelu(torch.autograd.Function):
    """Keeps x as it came."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, bias)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        for rows, result in _chunks(x, y):
            result.copy_(torch.ops.npu.npu_gelu(_sum(rows, bias), approximate="tanh"))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, bias = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dbias = torch.zeros_like(bias, dtype=torch.float32)
        for rows, cotangent, result in _chunks(x, grad, dx):
            each = torch.ops.npu.npu_gelu_backward(cotangent.float(), _sum(rows, bias), approximate="tanh")
            dbias += each.sum(0)
            result.copy_(each)
        return dx, dbias.to(bias.dtype)


def _sum(rows: Tensor, bias: Tensor) -> Tensor:
    """float32, of rows in any dtype."""
    return rows.float() + bias.float()


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Rows of tensors [..., d] of one shape, at most `_GELU_CHUNK` elements of each at once."""
    flat = [x.reshape(-1, x.shape[-1]) for x in tensors]
    step = max(1, _GELU_CHUNK // flat[0].shape[1])
    return zip(*(x.split(step) for x in flat), strict=True)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y`."""
    # The device adds half types in float32 and rounds once.
    return (x + y).to(x.dtype) if gate is None else _GateResidual.apply(x, y, gate)


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its affine LayerNorm.

    `npu_add_layer_norm` knows no gate, and in MOVA this norm follows a gated update only.
    """
    r = gate_residual(x, y, gate)
    return r, layer_norm(r, weight, bias, eps=eps)


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its modulated LayerNorm.

    Without a gate `npu_add_layer_norm` would serve one sample, but its backward wants weights in x's dtype, in which
    the modulation's gradient would be rounded.
    """
    r = gate_residual(x, y, gate)
    return r, norm_modulate(r, shift, scale, eps=eps)


class _LayerNorm(torch.autograd.Function):
    """`(x - mean) * rstd * weight + bias` with weight and bias [d], or [b, d]. Keeps x and two statistics a row.

    In float32 by the device's own kernel, which in half types would round the gradients of weight and bias too.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        affine = (weight.float(), bias.float())
        shared = weight.ndim == 1
        y, mean, rstd = torch.native_layer_norm(x.float(), x.shape[-1:], *(affine if shared else (None, None)), eps)
        if not shared:
            y = torch.addcmul(affine[1].unsqueeze(1), y, affine[0].unsqueeze(1))
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        return y.to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        grad, wide = grad.float(), x.float()
        backward = torch.ops.aten.native_layer_norm_backward
        if weight.ndim == 1:
            affine, wanted = (weight.float(), bias.float()), [True, True, True]
            dx, dweight, dbias = backward(grad, wide, x.shape[-1:], mean, rstd, *affine, wanted)
        else:
            dweight, dbias = (grad * (wide - mean) * rstd).sum(1), grad.sum(1)
            scaled, wanted = grad * weight.float().unsqueeze(1), [True, False, False]
            dx, _, _ = backward(scaled, wide, x.shape[-1:], mean, rstd, None, None, wanted)
        return dx.to(x.dtype), dweight.to(weight.dtype), dbias.to(bias.dtype), None


class _GateResidual(torch.autograd.Function):
    """Keeps y and the gate."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate)
        return torch.addcmul(x.float(), y.float(), gate.float().unsqueeze(1)).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, gate = ctx.saved_tensors
        wide = grad.float()
        dy, dgate = wide * gate.float().unsqueeze(1), (wide * y.float()).sum(1)
        return grad, dy.to(y.dtype), dgate.to(gate.dtype)
