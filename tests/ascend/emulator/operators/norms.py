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


def layer_norm_eval(x: Tensor, normalized_shape, weight=None, bias=None, eps: float = 1e-5) -> Tensor:
    """LayerNorm without a gradient."""
    return torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, eps)


def add_layer_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, beta: Tensor, epsilon: float = 1e-5, additional_output: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """layer_norm(x1 + x2), mean, rstd, x1 + x2."""
    x = x1 + x2
    mean = wide(x).mean(-1, keepdim=True)
    rstd = torch.rsqrt(wide(x).var(-1, unbiased=False, keepdim=True) + epsilon)
    y = ((wide(x) - mean) * rstd * wide(gamma) + wide(beta)).to(x.dtype)
    return y, mean.float(), rstd.float(), x


def add_layer_norm_backward(
    dy: Tensor | None, x1: Tensor, x2: Tensor, rstd: Tensor, mean: Tensor, gamma: Tensor, dsum: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx1, dx2, dgamma, dbeta; the last two in float32."""
    x = wide(x1 + x2)
    grad = torch.zeros_like(x) if dy is None else wide(dy)
    normed, scaled = (x - mean) * rstd, grad * wide(gamma)
    dx = rstd * (scaled - scaled.mean(-1, keepdim=True) - normed * (scaled * normed).mean(-1, keepdim=True))
    dx = (dx if dsum is None else dx + wide(dsum)).to(x1.dtype)
    rows = tuple(range(x.dim() - 1))
    return dx, dx.clone(), (grad * normed).sum(rows).float(), grad.sum(rows).float()


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
    "npu::npu_rms_norm": rms_norm,
    "npu::npu_rms_norm_backward": rms_norm_backward,
    "npu::npu_layer_norm_eval": layer_norm_eval,
    "npu::npu_add_layer_norm": add_layer_norm,
    "npu::npu_add_layer_norm_backward": add_layer_norm_backward,
    "npu::npu_rotary_mul": rotary_mul,
    "npu::npu_rotary_mul_backward": rotary_mul_backward,
}
