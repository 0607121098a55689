"""Fused operators on the CPU, forward and backward, in C++: float32 and bfloat16.

Importing this module loads the native library; ImportError says why where it is absent. x is [b, s, d]; all maths is in
float32, rounded once; only statistics of the rows are saved beside the inputs. Weights and modulations may be of any
floating dtype and get their gradients in it. Sums over rows are in a fixed order: results do not depend on the number
of threads. Each function raises ValueError for a wrong shape or device, TypeError for a wrong dtype, and RuntimeError
when a gradient of a gradient is asked for. The operators beneath (`torch.ops.mova_kernels.*`) have fake implementations
and autograd, so that torch.compile and checkpointing see them.
"""

import torch
from torch import Tensor

from mova_kernels.cpu.native import load

_NAMESPACE = "mova_kernels"
_ops = load()
_rms_norm_rope_fwd = _ops.rms_norm_rope_fwd.default
_rms_norm_rope_bwd = _ops.rms_norm_rope_bwd.default
_layer_norm_fwd = _ops.layer_norm_fwd.default
_layer_norm_bwd = _ops.layer_norm_bwd.default
_gate_residual_fwd = _ops.gate_residual_fwd.default
_gate_residual_bwd = _ops.gate_residual_bwd.default
_gate_residual_norm_fwd = _ops.gate_residual_norm_fwd.default
_gate_residual_norm_bwd = _ops.gate_residual_norm_bwd.default
_bias_gelu_fwd = _ops.bias_gelu_fwd.default
_bias_gelu_bwd = _ops.bias_gelu_bwd.default
_dequantise_nf4 = _ops.dequantise_nf4.default
_quantise_nf4 = _ops.quantise_nf4.default


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis: `x / sqrt(mean(x^2) + eps) * weight` (Zhang & Sennrich, 2019).

    x [b, s, d], weight [d].
    """
    _check_device(x=x, weight=weight)
    return _rms_norm_rope_fwd(x, weight, None, None, eps, False)[0]


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm over the whole row, then rotary embedding (Su et al., 2021) of each head by angle cos/sin.

    x [b, s, h*e], weight [h*e], cos and sin [s, e/2], which get no gradient. interleaved: pair i is channels
    (2i, 2i+1); otherwise (i, i + e/2).
    """
    _check_device(x=x, weight=weight, cos=cos, sin=sin)
    return _rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved)[0]


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """Adaptive LayerNorm (Peebles & Xie, 2023): `layer_norm(x) * (1 + scale) + shift`.

    x [b, s, d]; shift, scale [b, d].
    """
    _check_device(x=x, shift=shift, scale=scale)
    _check_axes(2, scale=scale)
    return _layer_norm_fwd(x, scale, shift, eps)[0]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm with weight and bias [d] over the last axis of x [b, s, d]."""
    _check_device(x=x, weight=weight, bias=bias)
    _check_axes(1, weight=weight)
    return _layer_norm_fwd(x, weight, bias, eps)[0]


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y` without a gate. x, y [b, s, d]; gate [b, d]."""
    _check_device(x=x, y=y, gate=gate)
    return _gate_residual_fwd(x, y, gate)


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its affine LayerNorm: returns (r, layer_norm(r) * weight + bias), both [b, s, d]."""
    _check_device(x=x, y=y, gate=gate, weight=weight, bias=bias)
    _check_axes(1, weight=weight)
    residual, out, _, _ = _gate_residual_norm_fwd(x, y, gate, weight, bias, eps)
    return residual, out


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """`r = x + gate * y` and its modulated LayerNorm: (r, layer_norm(r) * (1 + scale) + shift), both [b, s, d]."""
    _check_device(x=x, y=y, gate=gate, shift=shift, scale=scale)
    _check_axes(2, scale=scale)
    residual, out, _, _ = _gate_residual_norm_fwd(x, y, gate, scale, shift, eps)
    return residual, out


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` with the tanh approximation (Hendrycks & Gimpel, 2016). x [b, s, d], bias [d]."""
    _check_device(x=x, bias=bias)
    return _bias_gelu_fwd(x, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x W^T + b)`: torch's product, then bias and GELU in one pass. x [b, s, i], weight [o, i], bias [o].

    Of its own it keeps the product alone for the backward.
    """
    _check_device(x=x, weight=weight, bias=bias)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight must be [o, i] for x {list(x.shape)}, got {list(weight.shape)}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight must have x's dtype {x.dtype}, got {weight.dtype}")
    return _bias_gelu_fwd(torch.nn.functional.linear(x, weight), bias)


def dequantise_nf4(
    weight: Tensor,
    absmax: Tensor,
    nested_absmax: Tensor | None,
    nested_offset: Tensor | None,
    values: Tensor,
    scale_values: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """The weight [o, i] in `dtype`, float32 or bfloat16, of 4-bit codes; without a gradient.

    weight uint8 [o, i / 2], of an even input in the high half; values float32 [16] of the codes. absmax [o, i / 64], a
    factor for each 64 inputs: float32, or uint8 codes of scale_values float32 [256] with nested_absmax float32, a
    factor for each 256 of them, and nested_offset float32 [].
    """
    return _dequantise_nf4(weight, absmax, nested_absmax, nested_offset, values, scale_values, dtype)


def quantise_nf4(weight: Tensor, bounds: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """(codes, absmax) of a weight [o, i], float32 or bfloat16: 4-bit codes, uint8 [o, i / 2], that of an even input in
    the high half, and the largest magnitude of each 64 inputs, float32 [o, i / 64]. Without a gradient.

    A code is the number of bounds, float32 [15] in ascending order, below `x * (1 / max(absmax, least))`, in float32.
    It is 15 for NaN, which is the absmax of its block then.
    """
    return _quantise_nf4(weight, bounds, least)


def _check_device(**tensors: Tensor | None) -> None:
    """All on the CPU, or all without data ("meta"): the dispatcher's own words for a mixture help nobody."""
    x = tensors["x"]
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(f"x is on {x.device}; the native kernels serve the CPU only")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, x on {x.device}; all must be on one device")


def _check_axes(axes: int, **vectors: Tensor) -> None:
    """One operator beneath serves [d] and [b, d]: which of them an operator means must be checked here."""
    for name, vector in vectors.items():
        if vector.dim() != axes:
            raise ValueError(f"{name} must be {'[d]' if axes == 1 else '[b, d]'}, got {list(vector.shape)}")


# Shapes and dtypes of the results, for tensors without data.


def _rows_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _statistics(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.float32)


def _vector_like(vector: Tensor) -> Tensor:
    return torch.empty_like(vector, memory_format=torch.contiguous_format)


def _fake_rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved):
    return _rows_like(x), _statistics(x)


def _fake_rms_norm_rope_bwd(grad, x, weight, cos, sin, rstd, interleaved):
    return _rows_like(x), _vector_like(weight)


def _fake_layer_norm_fwd(x, scale, shift, eps):
    return _rows_like(x), _statistics(x), _statistics(x)


def _fake_layer_norm_bwd(grad, x, scale, mean, rstd):
    return _rows_like(x), _vector_like(scale), _vector_like(scale)


def _fake_gate_residual_fwd(x, y, gate):
    return _rows_like(x)


def _fake_gate_residual_bwd(grad, y, gate):
    return _rows_like(y), _vector_like(gate)


def _fake_gate_residual_norm_fwd(x, y, gate, scale, shift, eps):
    return _rows_like(x), _rows_like(x), _statistics(x), _statistics(x)


def _fake_gate_residual_norm_bwd(grad_residual, grad, residual, y, gate, scale, mean, rstd):
    grads = [_rows_like(residual), _vector_like(scale), _vector_like(scale)]
    return grads if gate is None else [*grads, _rows_like(residual), _vector_like(gate)]


def _fake_bias_gelu_fwd(x, bias):
    return _rows_like(x)


def _fake_bias_gelu_bwd(grad, x, bias):
    return _rows_like(x), _vector_like(bias)


def _fake_dequantise_nf4(weight, absmax, nested_absmax, nested_offset, values, scale_values, dtype):
    return weight.new_empty((len(weight), 2 * weight.shape[1]), dtype=dtype)


def _fake_quantise_nf4(weight, bounds, least):
    o, i = weight.shape
    return weight.new_empty((o, i // 2), dtype=torch.uint8), weight.new_empty((o, i // 64), dtype=torch.float32)


# The gradients are in csrc/cpu/autograd.cpp.


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("the native CPU kernels have no second derivative; the reference implementation has")


_FAKES = {
    "rms_norm_rope_fwd": _fake_rms_norm_rope_fwd,
    "rms_norm_rope_bwd": _fake_rms_norm_rope_bwd,
    "layer_norm_fwd": _fake_layer_norm_fwd,
    "layer_norm_bwd": _fake_layer_norm_bwd,
    "gate_residual_fwd": _fake_gate_residual_fwd,
    "gate_residual_bwd": _fake_gate_residual_bwd,
    "gate_residual_norm_fwd": _fake_gate_residual_norm_fwd,
    "gate_residual_norm_bwd": _fake_gate_residual_norm_bwd,
    "bias_gelu_fwd": _fake_bias_gelu_fwd,
    "bias_gelu_bwd": _fake_bias_gelu_bwd,
    "dequantise_nf4": _fake_dequantise_nf4,
    "quantise_nf4": _fake_quantise_nf4,
}
for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"{_NAMESPACE}::{_name}", _fake)
    if _name.endswith("_bwd"):
        torch.library.register_autograd(f"{_NAMESPACE}::{_name}", _no_second_derivative)
