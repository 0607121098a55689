"""Gated residual and the modulated LayerNorm that follows it, in one Triton kernel: `r = x + gate * y` and its norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.triton_norm import norm_rows_bwd, norm_rows_fwd
from mova_kernels.triton_rows import (
    COLS,
    ROWS,
    check_inputs,
    launch,
    opaque,
    partial_sums,
    per_sample,
    row_programs,
    row_strides,
    row_tiles,
    unit_rows,
)


@triton.jit
def gate_residual_norm_modulate_fwd_kernel(
    x, y, gate, shift, scale, r, out, mean, rstd, x_batch, x_row, y_batch, y_row, gate_batch, shift_batch, scale_batch,
    s, d, eps, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_fwd(
        x, y, gate, scale, shift, r, out, mean, rstd,
        x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch, s, d, eps, True, ROWS, COLS,
    )  # fmt: skip


@triton.jit
def gate_residual_norm_modulate_bwd_kernel(
    dout, dr, r, y, gate, scale, mean, rstd, dx, dy, dgate, dshift, dscale, y_batch, y_row, gate_batch, scale_batch,
    s, d, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_bwd(
        dout, dr, r, y, gate, scale, mean, rstd, dx, dy, dgate, dscale, dshift,
        s * d, d, y_batch, y_row, gate_batch, scale_batch, s, d, True, ROWS, COLS,
    )  # fmt: skip


def _fake_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


@opaque("gate_residual_norm_modulate", _fake_fwd)
def gate_residual_norm_modulate_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r and out [b, s, d], mean and rstd [b, s] float32)."""
    x, y, gate = unit_rows(x), unit_rows(y), None if gate is None else unit_rows(gate)
    shift, scale = unit_rows(shift), unit_rows(scale)
    r, out, mean, rstd = _fake_fwd(x, y, gate, shift, scale, eps)
    strides = (*row_strides(x), *row_strides(y), *(0 if v is None else v.stride(0) for v in (gate, shift, scale)))
    args = (x, y, gate, shift, scale, r, out, mean, rstd, *strides, *x.shape[1:], eps)
    launch(gate_residual_norm_modulate_fwd_kernel, row_tiles(x), *args, ROWS=ROWS, COLS=COLS)
    return r, out, mean, rstd


def _fake_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dy, dgate = (r.new_empty(0) if x is None or gate is None else x.new_empty(x.shape) for x in (y, gate))
    return r.new_empty(r.shape), dy, dgate, shift.new_empty(shift.shape), scale.new_empty(scale.shape)


@opaque("gate_residual_norm_modulate_backward", _fake_bwd)
def gate_residual_norm_modulate_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dy, dgate, dshift, dscale); without a gate dy equals dx, and dy and dgate are returned empty."""
    grid, scale, dr = row_programs(r), unit_rows(scale), None if dr is None else dr.contiguous()
    dx, dy, *_ = _fake_bwd(dout, dr, r, y, gate, shift, scale, mean, rstd)
    dshift, dscale = partial_sums(r, grid), partial_sums(r, grid)
    if gate is None:
        y, dgate, strides = None, None, (0, 0, 0)
    else:
        y, gate, dgate = unit_rows(y), unit_rows(gate), partial_sums(r, grid)
        strides = (*row_strides(y), gate.stride(0))
    args = (dout.contiguous(), dr, r, y, gate, scale, mean, rstd, dx, dy, dgate, dshift, dscale, *strides)
    launch(gate_residual_norm_modulate_bwd_kernel, grid, *args, scale.stride(0), *r.shape[1:], ROWS=ROWS, COLS=COLS)
    dgate = r.new_empty(0) if gate is None else dgate.sum(1).to(gate.dtype)
    return dx, dy, dgate, dshift.sum(1).to(shift.dtype), dscale.sum(1).to(scale.dtype)


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
