"""Norms and rotary embedding."""

import torch
from torch import Tensor

from ascend.emulator.operators.gradients import vjp, wide


def _last(x: Tensor, gamma: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim() - gamma.dim(), x.dim()))


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """y and rstd; rstd is float32."""
    if gamma.dtype != x.dtype:
        raise RuntimeError(f"npu_rms_norm: gamma is {gamma.dtype}, input {x.dtype}")
    rstd = torch.rsqrt(wide(x).square().mean(_last(x, gamma), keepdim=True) + epsilon)
    return (wide(x) * rstd * wide(gamma)).to(x.dtype), rstd.float()


def rms_norm_backward(dy: Tensor, x: Tensor, gamma: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """dx in x's dtype, dgamma in float32."""
    normed, scaled = wide(x) * rstd, wide(dy) * wide(gamma)
    dx = rstd * (scaled - normed * (scaled * normed).mean(_last(x, gamma), keepdim=True))
    rows = tuple(range(x.dim() - gamma.dim()))
    return dx.to(x.dtype), (wide(dy) * normed).sum(rows).float()


def add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, mean, rstd and the sum; the statistics are float32, and of the sum before it is rounded."""
    if not (additional_output and x1.dtype == x2.dtype and gamma.dtype == beta.dtype):
        raise RuntimeError(f"npu_add_layer_norm: {x1.dtype}, {x2.dtype}, {gamma.dtype} and {beta.dtype} not emulated")
    x = wide(x1) + wide(x2)
    y, mean, rstd = torch.native_layer_norm(x, gamma.shape, wide(gamma), wide(beta), epsilon)
    return y.to(x1.dtype), mean, rstd, x.to(x1.dtype)


def _wide(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else wide(vector)


def layer_norm(
    x: Tensor, normalized_shape, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y in x's dtype, mean and rstd in float32."""
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        raise RuntimeError(f"native_layer_norm: weight is {weight.dtype}, bias {bias.dtype}")
    y, mean, rstd = torch.native_layer_norm(wide(x), normalized_shape, _wide(weight), _wide(bias), eps)
    return y.to(x.dtype), mean, rstd


def layer_norm_backward(
    grad: Tensor, x: Tensor, normalized_shape, mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, output_mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """dx in x's dtype, the gradients of weight and bias in float32. (PyTorch's kernel for a CPU sums these in x's.)"""
    dx, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        wide(grad), wide(x), normalized_shape, mean, rstd, _wide(weight), _wide(bias), output_mask
    )
    return None if dx is None else dx.to(x.dtype), dweight, dbias


def layer_norm_eval(x: Tensor, normalized_shape, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    """LayerNorm without a gradient."""
    return torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, eps)


def _turned(x: Tensor, mode: str) -> Tensor:
    if mode == "interleave":
        return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: str) -> Tensor:
    return (wide(cos) * wide(x) + wide(sin) * _turned(wide(x), mode)).to(x.dtype)


def rotary_mul(x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half", rotate: Tensor | None = None) -> Tensor:
    """`cos * x + sin * turned(x)`."""
    if rotary_mode not in ("half", "interleave") or rotate is not None:
        raise RuntimeError(f"npu_rotary_mul: mode {rotary_mode} with rotate {rotate} is not emulated")
    return _rotary(x, cos, sin, rotary_mode)


def rotary_mul_backward(grad: Tensor, x: Tensor, cos: Tensor, sin: Tensor, rotary_mode: str = "half") -> tuple:
    """Gradients of x, cos and sin."""
    return vjp(lambda *inputs: _rotary(*inputs, rotary_mode), (x, cos, sin), grad)


OPERATORS = {
    "aten::native_layer_norm": layer_norm,
    "aten::native_layer_norm_backward": layer_norm_backward,
    "npu::npu_add_layer_norm": add_layer_norm,
    "npu::npu_rms_norm": rms_norm,
    "npu::npu_rms_norm_backward": rms_norm_backward,
    "npu::npu_layer_norm_eval": layer_norm_eval,
    "npu::npu_rotary_mul": rotary_mul,
    "npu::npu_rotary_mul_backward": rotary_mul_backward,
}


def ada_layer_norm(x: Tensor, scale: Tensor, shift: Tensor, weight=None, bias=None, epsilon: float = 1e-5) -> Tensor:
    """`layer_norm(x) * (1 + scale) + shift`; scale and shift [b, d] in x's dtype."""
    if not x.dtype == scale.dtype == shift.dtype:
        raise RuntimeError(f"adaln: dtypes {x.dtype}, {scale.dtype}, {shift.dtype}")
    normed = torch.nn.functional.layer_norm(wide(x), x.shape[-1:], weight, bias, epsilon)
    return (normed * (1 + wide(scale).unsqueeze(1)) + wide(shift).unsqueeze(1)).to(x.dtype)


MINDIE = {"mindiesd::adaln": ada_layer_norm}
