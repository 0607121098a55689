"""Gated residual, `x + gate * y`, in Triton."""

import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import check_inputs, per_sample, row_strides, unit_rows
from mova_kernels.triton_norm import load_residual
from mova_kernels.triton_rows import launch, opaque, partial_sums, row_sums, row_tiles, tiles_of


@triton.jit
def gate_residual_fwd_kernel(
    x,
    y,
    gate,
    out,
    x_batch,
    x_row,
    y_batch,
    y_row,
    gate_batch,
    s,
    d,
    LOOP: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """out of every p-th row tile."""
    batch, rows = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS)
    if gate is not None:
        gate += batch * gate_batch
    begin, end, step = tiles_of(s, ROWS, LOOP)
    for tile in range(begin, end, step):
        first = tl.cast(tile, tl.int64) * ROWS
        x_tile = x + batch * x_batch + first * x_row
        y_tile = y + batch * y_batch + first * y_row
        out_tile = out + (batch * s + first) * d
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = (first + rows < s)[:, None] & (cols < d)[None, :]
            value = load_residual(x_tile, y_tile, gate, x_row, y_row, rows, cols, mask, d)
            tl.store(out_tile + rows[:, None] * d + cols[None, :], value, mask)


@triton.jit
def gate_residual_bwd_kernel(
    dout, y, gate, dy, dgate, y_batch, y_row, gate_batch, s, d, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """dy = gate * dout of every p-th row tile, and their part of dgate = sum(dout * y)."""
    batch = tl.program_id(1).to(tl.int64)
    dgate += (batch * tl.num_programs(0) + tl.program_id(0)) * d
    gate += batch * gate_batch
    rows = tl.arange(0, ROWS)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        factor = tl.load(gate + cols, cols < d, 0.0).to(tl.float32)[None, :]
        total = tl.zeros((COLS,), tl.float32)
        for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
            first = tl.cast(tile, tl.int64) * ROWS
            mask = (first + rows < s)[:, None] & (cols < d)[None, :]
            place = (batch * s + first) * d + rows[:, None] * d + cols[None, :]
            g = tl.load(dout + place, mask, 0.0).to(tl.float32)
            update = tl.load(y + batch * y_batch + first * y_row + rows[:, None] * y_row + cols[None, :], mask, 0.0)
            tl.store(dy + place, g * factor, mask)
            total += tl.sum(g * update.to(tl.float32), 0)
        tl.store(dgate + cols, total, cols < d)


@opaque("gate_residual")
def gate_residual_fwd(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """x + gate * y, or x + y."""
    x, y, gate = unit_rows(x), unit_rows(y), None if gate is None else unit_rows(gate)
    out = x.new_empty(x.shape)
    strides = (*row_strides(x), *row_strides(y), 0 if gate is None else gate.stride(0))
    launch(gate_residual_fwd_kernel, row_tiles(gate_residual_fwd_kernel, x), x, y, gate, out, *strides, *x.shape[1:])
    return out


@opaque("gate_residual_backward")
def gate_residual_bwd(dout: Tensor, y: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """(dy, dgate); dx is dout."""
    y, gate, grid = unit_rows(y), unit_rows(gate), row_sums(gate_residual_bwd_kernel, y)
    dy, dgate = y.new_empty(y.shape), partial_sums(y, grid)
    args = (dout.contiguous(), y, gate, dy, dgate, *row_strides(y), gate.stride(0), *y.shape[1:])
    launch(gate_residual_bwd_kernel, grid, *args)
    return dy, dgate.sum(1).to(gate.dtype)


def _save(ctx, inputs, output) -> None:
    _, y, gate = inputs
    ctx.y_dtype = y.dtype
    ctx.save_for_backward(*(() if gate is None else (y, gate)))


def _backward(ctx, dout):
    if not ctx.saved_tensors:
        return dout, dout.to(ctx.y_dtype), None
    return (dout, *gate_residual_bwd(dout, *ctx.saved_tensors))


gate_residual_fwd.register_autograd(_backward, setup_context=_save)


def gate_residual(x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
    """`x + gate * y`, or `x + y` without a gate. x, y [b, s, d], gate [b, d]; float32, bfloat16 or float16.

    Returns x's dtype. Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    gate = per_sample(x, gate)
    check_inputs("gate_residual", x, like_x={"y": y}, per_sample={"gate": gate})
    return gate_residual_fwd(x, y, gate)
