"""Gated residual and the affine LayerNorm that follows it, in one Triton kernel: `r = x + gate * y` and its norm."""

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
def gate_residual_norm_fwd_kernel(
    x, y, gate, weight, bias, r, out, mean, rstd, x_batch, x_row, y_batch, y_row, gate_batch,
    s, d, eps, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_fwd(
        x, y, gate, weight, bias, r, out, mean, rstd,
        x_batch, x_row, y_batch, y_row, gate_batch, 0, 0, s, d, eps, False, ROWS, COLS,
    )  # fmt: skip


@triton.jit
def gate_residual_norm_bwd_kernel(
    dout, dr, r, y, gate, weight, mean, rstd, dx, dy, dgate, dweight, dbias, y_batch, y_row, gate_batch,
    s, d, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_bwd(
        dout, dr, r, y, gate, weight, mean, rstd, dx, dy, dgate, dweight, dbias,
        s * d, d, y_batch, y_row, gate_batch, 0, s, d, False, ROWS, COLS,
    )  # fmt: skip


def _fake_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), x.new_empty(x.shape), mean, rstd


@opaque("gate_residual_norm", _fake_fwd)
def gate_residual_norm_fwd(
    x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(r and out [b, s, d], mean and rstd [b, s] float32)."""
    x, y, gate = unit_rows(x), unit_rows(y), None if gate is None else unit_rows(gate)
    weight, bias = weight.contiguous(), bias.contiguous()
    r, out, mean, rstd = _fake_fwd(x, y, gate, weight, bias, eps)
    strides = (*row_strides(x), *row_strides(y), 0 if gate is None else gate.stride(0))
    args = (x, y, gate, weight, bias, r, out, mean, rstd, *strides, *x.shape[1:], eps)
    launch(gate_residual_norm_fwd_kernel, row_tiles(x), *args, ROWS=ROWS, COLS=COLS)
    return r, out, mean, rstd


def _fake_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dy, dgate = (r.new_empty(0) if x is None or gate is None else x.new_empty(x.shape) for x in (y, gate))
    return r.new_empty(r.shape), dy, dgate, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@opaque("gate_residual_norm_backward", _fake_bwd)
def gate_residual_norm_bwd(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dy, dgate, dweight, dbias); without a gate dy equals dx, and dy and dgate are returned empty."""
    grid, weight, dr = row_programs(r), weight.contiguous(), None if dr is None else dr.contiguous()
    dx, dy, *_ = _fake_bwd(dout, dr, r, y, gate, weight, bias, mean, rstd)
    dweight, dbias = partial_sums(r, grid), partial_sums(r, grid)
    if gate is None:
        y, dgate, strides = None, None, (0, 0, 0)
    else:
        y, gate, dgate = unit_rows(y), unit_rows(gate), partial_sums(r, grid)
        strides = (*row_strides(y), gate.stride(0))
    args = (dout.contiguous(), dr, r, y, gate, weight, mean, rstd, dx, dy, dgate, dweight, dbias, *strides)
    launch(gate_residual_norm_bwd_kernel, grid, *args, *r.shape[1:], ROWS=ROWS, COLS=COLS)
    dgate = r.new_empty(0) if gate is None else dgate.sum(1).to(gate.dtype)
    return dx, dy, dgate, dweight.sum((0, 1)).to(weight.dtype), dbias.sum((0, 1)).to(bias.dtype)


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
