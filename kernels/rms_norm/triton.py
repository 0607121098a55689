"""RMSNorm, `x / sqrt(mean(x^2) + eps) * weight` (Zhang & Sennrich, 2019), in Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import check_inputs, row_strides, unit_rows
from mova_kernels.triton_rows import add_to_partial, launch, opaque, partial_sums, row_sums, row_tiles, tiles_of


@triton.jit
def rms_norm_fwd_kernel(
    x, weight, out, rstd, x_batch, x_row, s, d, eps, LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """out and rstd of every p-th row tile."""
    batch, rows = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS)
    begin, end, step = tiles_of(s, ROWS, LOOP)
    for tile in range(begin, end, step):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        x_tile = x + batch * x_batch + first * x_row
        row = batch * s + first
        squares = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            value = tl.load(x_tile + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
            squares += value * value
        scale = 1.0 / tl.sqrt(tl.sum(squares, 1) / d + eps)
        tl.store(rstd + row + rows, scale, inside)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            value = tl.load(x_tile + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
            w = tl.load(weight + cols, cols < d, 0.0).to(tl.float32)
            tl.store(out + row * d + rows[:, None] * d + cols[None, :], value * scale[:, None] * w[None, :], mask)


@triton.jit
def rms_norm_bwd_kernel(
    dout, x, weight, rstd, dx, dweight, x_batch, x_row, s, d, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """dx of every p-th row tile, and their part of dweight.

    With n = x * rstd and g = dout * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(dout * n).
    """
    batch = tl.program_id(1).to(tl.int64)
    dweight += (batch * tl.num_programs(0) + tl.program_id(0)) * d
    rows = tl.arange(0, ROWS)
    for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        x_tile = x + batch * x_batch + first * x_row
        row = batch * s + first
        scale = tl.load(rstd + row + rows, inside, 0.0)
        products = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            n = tl.load(x_tile + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32) * scale[:, None]
            g = tl.load(dout + row * d + rows[:, None] * d + cols[None, :], mask, 0.0).to(tl.float32)
            w = tl.load(weight + cols, cols < d, 0.0).to(tl.float32)
            products += g * w[None, :] * n
        mean = tl.sum(products, 1) / d
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            n = tl.load(x_tile + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32) * scale[:, None]
            g = tl.load(dout + row * d + rows[:, None] * d + cols[None, :], mask, 0.0).to(tl.float32)
            w = tl.load(weight + cols, cols < d, 0.0).to(tl.float32)
            value = scale[:, None] * (g * w[None, :] - n * mean[:, None])
            tl.store(dx + row * d + rows[:, None] * d + cols[None, :], value, mask)
            add_to_partial(dweight, cols, cols < d, tl.sum(g * n, 0), tile)
        # What one thread has added up another may read for the next tile.
        tl.debug_barrier()


@opaque("rms_norm")
def rms_norm_fwd(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(out [b, s, d], rstd [b, s] float32)."""
    x = unit_rows(x)
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    args = (x, weight.contiguous(), out, rstd, *row_strides(x), *x.shape[1:], eps)
    launch(rms_norm_fwd_kernel, row_tiles(rms_norm_fwd_kernel, x), *args)
    return out, rstd


@opaque("rms_norm_backward")
def rms_norm_bwd(dout: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dweight)."""
    x, grid = unit_rows(x), row_sums(rms_norm_bwd_kernel, x)
    dx, dweight = x.new_empty(x.shape), partial_sums(x, grid)
    args = (dout.contiguous(), x, weight.contiguous(), rstd, dx, dweight, *row_strides(x), *x.shape[1:])
    launch(rms_norm_bwd_kernel, grid, *args)
    return dx, dweight.sum((0, 1)).to(weight.dtype)


def _save(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, output[1])


def _backward(ctx, dout, _):
    return (*rms_norm_bwd(dout, *ctx.saved_tensors), None)


rms_norm_fwd.register_autograd(_backward, setup_context=_save)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMSNorm over the last axis. x [b, s, d] and weight [d] in float32, bfloat16 or float16; returns x's dtype.

    Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    check_inputs("rms_norm", x, vectors={"weight": weight})
    return rms_norm_fwd(x, weight, eps)[0]
