"""Gated residual and the modulated LayerNorm that follows it, in one Triton kernel: `r = x + gate * y` and its norm."""

import torch
from torch import Tensor

from mova_kernels.rows import check_inputs, per_sample
from mova_kernels.triton_norm import norm_rows, norm_rows_backward
from mova_kernels.triton_rows import opaque


@opaque("gate_residual_norm_modulate")
def gate_residual_norm_modulate_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r and out [b, s, d], mean and rstd [b, s] float32)."""
    return norm_rows(x, y, gate, scale, shift, eps, modulated=True)


@opaque("gate_residual_norm_modulate_backward")
def gate_residual_norm_modulate_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dy, dgate, dshift, dscale); without a gate dy equals dx, and dy and dgate are returned empty."""
    vectors = (scale, shift, mean, rstd)
    dx, dy, dgate, dscale, dshift = norm_rows_backward(dout, dr, r, y, gate, *vectors, modulated=True)
    return dx, dy, dgate, dshift, dscale


def _save(ctx, inputs, output) -> None:
    _, y, gate, shift, scale, _ = inputs
    r, _, mean, rstd = output
    ctx.set_materialize_grads(False)
    # r is the next operator's input and y is held as the layer's output that it is: neither is a copy.
    ctx.save_for_backward(r, None if gate is None else y, gate, shift, scale, mean, rstd)
    ctx.y_dtype = y.dtype


def _backward(ctx, dr, dout, *_):
    r, y, gate, shift, scale, mean, rstd = ctx.saved_tensors
    dout = torch.zeros_like(r) if dout is None else dout
    dx, dy, dgate, dshift, dscale = gate_residual_norm_modulate_bwd(dout, dr, r, y, gate, shift, scale, mean, rstd)
    if gate is None:
        return dx, dx.to(ctx.y_dtype), None, dshift, dscale, None
    return dx, dy, dgate, dshift, dscale, None


gate_residual_norm_modulate_fwd.register_autograd(_backward, setup_context=_save)


def gate_residual_norm_modulate(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """(r, layer_norm(r) * (1 + scale) + shift) with `r = x + gate * y`, or `x + y` without a gate.

    x, y [b, s, d], gate, shift and scale [b, d] in float32, bfloat16 or float16; both results have x's dtype.
    Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    gate, shift, scale = (per_sample(x, vector) for vector in (gate, shift, scale))
    modulation = {"gate": gate, "shift": shift, "scale": scale}
    check_inputs("gate_residual_norm_modulate", x, like_x={"y": y}, per_sample=modulation)
    r, out, *_ = gate_residual_norm_modulate_fwd(x, y, gate, shift, scale, eps)
    return r, out
