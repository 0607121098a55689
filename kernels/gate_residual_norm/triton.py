"""Gated residual and the affine LayerNorm that follows it, in one Triton kernel: `r = x + gate * y` and its norm."""

import torch
from torch import Tensor

from mova_kernels.rows import check_inputs, per_sample
from mova_kernels.triton_norm import norm_rows, norm_rows_backward
from mova_kernels.triton_rows import opaque


@opaque("gate_residual_norm")
def gate_residual_norm_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r and out [b, s, d], mean and rstd [b, s] float32)."""
    return norm_rows(x, y, gate, weight, bias, eps, modulated=False)


@opaque("gate_residual_norm_backward")
def gate_residual_norm_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dy, dgate, dweight, dbias); without a gate dy equals dx, and dy and dgate are returned empty."""
    return norm_rows_backward(dout, dr, r, y, gate, weight, bias, mean, rstd, modulated=False)


def _save(ctx, inputs, output) -> None:
    _, y, gate, weight, bias, _ = inputs
    r, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    # r is the next operator's input and y is held as the layer's output that it is: neither is a copy.
    ctx.save_for_backward(r, None if gate is None else y, gate, weight, bias, mean, rstd)
    ctx.y_dtype = y.dtype


def _backward(ctx, dr, dout, *_):
    r, y, gate, weight, bias, mean, rstd = ctx.saved_tensors
    dout = torch.zeros_like(r) if dout is None else dout
    dx, dy, dgate, dweight, dbias = gate_residual_norm_bwd(dout, dr, r, y, gate, weight, bias, mean, rstd)
    if gate is None:
        return dx, dx.to(ctx.y_dtype), None, dweight, dbias, None
    return dx, dy, dgate, dweight, dbias, None


gate_residual_norm_fwd.register_autograd(_backward, setup_context=_save)


def gate_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """(r, layer_norm(r) * weight + bias) with `r = x + gate * y`, or `x + y` without a gate.

    x, y [b, s, d], gate [b, d], weight and bias [d] in float32, bfloat16 or float16; both results have x's dtype.
    Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    gate, affine = per_sample(x, gate), {"weight": weight, "bias": bias}
    check_inputs("gate_residual_norm", x, like_x={"y": y}, per_sample={"gate": gate}, vectors=affine)
    r, out, *_ = gate_residual_norm_fwd(x, y, gate, weight, bias, eps)
    return r, out
