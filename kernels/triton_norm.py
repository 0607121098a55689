"""LayerNorm over rows with what the engine's operators put before and after it: four operators in one pair of kernels.

Forward: `r = x + gate * y` (y and gate optional), rounded to x's dtype, then `out = n * a + c` with n = (r - mean) *
rstd; a = scale or, where MODULATED, 1 + scale; c = shift. Vectors lie `<name>_batch` apart for each sample: 0 for a
norm's own weight and bias. A tensor that an operator has not is None, and the kernel is compiled without it.

Backward, with g = dout * a (Ba et al., 2016): dr' = dr + rstd * (g - mean(g) - n * mean(g * n)); dx = dr';
dy = gate * dr'; dgate = sum(dr' * y); dscale = sum(dout * n); dshift = sum(dout).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import row_strides, unit_rows
from mova_kernels.triton_rows import add_to_partial, launch, partial_sums, row_sums, row_tiles


@triton.jit
def load_residual(x, y, gate, x_row, y_row, rows, cols, mask, d):
    """x + gate * y, rounded to x's dtype, for the tile at rows and cols; float32 [ROWS, COLS]."""
    value = tl.load(x + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
    if y is not None:
        update = tl.load(y + rows[:, None] * y_row + cols[None, :], mask, 0.0).to(tl.float32)
        if gate is not None:
            update *= tl.load(gate + cols, cols < d, 0.0).to(tl.float32)[None, :]
        value = (value + update).to(x.dtype.element_ty).to(tl.float32)
    return value


@triton.jit
def load_factor(scale, cols, d, MODULATED: tl.constexpr):
    """scale or 1 + scale at cols; float32 [COLS]."""
    factor = tl.load(scale + cols, cols < d, 0.0).to(tl.float32)
    if MODULATED:
        factor += 1.0
    return factor


@triton.jit
def norm_tile_fwd(
    tile, x, y, gate, scale, shift, r, out, mean, rstd,
    x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch,
    s, d, eps, MODULATED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One row tile: r (where y is there), out, and the statistics mean and rstd [b, s]."""
    batch, rows = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS)
    scale += batch * scale_batch
    shift += batch * shift_batch
    if gate is not None:
        gate += batch * gate_batch
    first = tl.cast(tile, tl.int64) * ROWS
    inside = first + rows < s
    row = batch * s + first
    x += batch * x_batch + first * x_row
    if y is not None:
        y += batch * y_batch + first * y_row
    # Welford's update for each of the COLS lanes, merged at the end (Chan et al., 1983): one reading, no cancellation.
    lane_mean, lane_square = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < d)[None, :]
        value = load_residual(x, y, gate, x_row, y_row, rows, cols, mask, d)
        delta = tl.where(mask, value - lane_mean, 0.0)
        lane_mean += delta / (start // COLS + 1)
        lane_square += delta * tl.where(mask, value - lane_mean, 0.0)
    count = ((d + COLS - 1 - tl.arange(0, COLS)) // COLS).to(tl.float32)[None, :]
    mu = tl.sum(lane_mean * count, 1) / d
    away = lane_mean - mu[:, None]
    scaling = 1.0 / tl.sqrt(tl.sum(lane_square + count * away * away, 1) / d + eps)
    tl.store(mean + row + rows, mu, inside)
    tl.store(rstd + row + rows, scaling, inside)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < d)[None, :]
        # Computed again: what this program has just stored another of its threads may not see yet.
        value = load_residual(x, y, gate, x_row, y_row, rows, cols, mask, d)
        if y is not None:
            tl.store(r + row * d + rows[:, None] * d + cols[None, :], value, mask)
        factor = load_factor(scale, cols, d, MODULATED)
        offset = tl.load(shift + cols, cols < d, 0.0).to(tl.float32)
        value = (value - mu[:, None]) * scaling[:, None] * factor[None, :] + offset[None, :]
        tl.store(out + row * d + rows[:, None] * d + cols[None, :], value, mask)


@triton.jit
def norm_rows_fwd_kernel(
    x, y, gate, scale, shift, r, out, mean, rstd,
    x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch,
    s, d, eps, MODULATED: tl.constexpr, LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Every p-th row tile, or without LOOP the one of the program's own number."""
    # Written twice: with a loop that the compiler has to remove it needs more registers.
    if LOOP:
        for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
            norm_tile_fwd(
                tile, x, y, gate, scale, shift, r, out, mean, rstd,
                x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch,
                s, d, eps, MODULATED, ROWS, COLS,
            )  # fmt: skip
    else:
        norm_tile_fwd(
            tl.program_id(0), x, y, gate, scale, shift, r, out, mean, rstd,
            x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch,
            s, d, eps, MODULATED, ROWS, COLS,
        )  # fmt: skip


@triton.jit
def norm_rows_bwd_kernel(
    dout, dr, r, y, gate, scale, mean, rstd, dx, dy, dgate, dscale, dshift,
    r_batch, r_row, y_batch, y_row, gate_batch, scale_batch,
    s, d, MODULATED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Every p-th row tile: dx, dy (where there is a gate), and their part of dgate, dscale and dshift [b, p, d]."""
    batch = tl.program_id(1).to(tl.int64)
    partial = (batch * tl.num_programs(0) + tl.program_id(0)) * d
    dscale += partial
    dshift += partial
    scale += batch * scale_batch
    if gate is not None:
        dgate += partial
        gate += batch * gate_batch
    rows = tl.arange(0, ROWS)
    for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        row = batch * s + first
        r_tile = r + batch * r_batch + first * r_row
        mu, scaling = tl.load(mean + row + rows, inside, 0.0), tl.load(rstd + row + rows, inside, 0.0)
        sums, products = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            n = tl.load(r_tile + rows[:, None] * r_row + cols[None, :], mask, 0.0).to(tl.float32)
            n = (n - mu[:, None]) * scaling[:, None]
            g = tl.load(dout + row * d + rows[:, None] * d + cols[None, :], mask, 0.0).to(tl.float32)
            g *= load_factor(scale, cols, d, MODULATED)[None, :]
            sums += g
            products += g * n
        mean_g, mean_gn = tl.sum(sums, 1) / d, tl.sum(products, 1) / d
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            place = row * d + rows[:, None] * d + cols[None, :]
            n = tl.load(r_tile + rows[:, None] * r_row + cols[None, :], mask, 0.0).to(tl.float32)
            n = (n - mu[:, None]) * scaling[:, None]
            g = tl.load(dout + place, mask, 0.0).to(tl.float32)
            add_to_partial(dscale, cols, cols < d, tl.sum(g * n, 0), tile)
            add_to_partial(dshift, cols, cols < d, tl.sum(g, 0), tile)
            g *= load_factor(scale, cols, d, MODULATED)[None, :]
            g = scaling[:, None] * (g - mean_g[:, None] - n * mean_gn[:, None])
            if dr is not None:
                g += tl.load(dr + place, mask, 0.0).to(tl.float32)
            tl.store(dx + place, g, mask)
            if gate is not None:
                y_place = batch * y_batch + (first + rows)[:, None] * y_row + cols[None, :]
                update = tl.load(y + y_place, mask, 0.0).to(tl.float32)
                add_to_partial(dgate, cols, cols < d, tl.sum(g * update, 0), tile)
                factor = tl.load(gate + cols, cols < d, 0.0).to(tl.float32)
                tl.store(dy + place, g * factor[None, :], mask)
        # What one thread has added up another may read for the next tile.
        tl.debug_barrier()


def _batch_stride(vector: Tensor | None) -> int:
    """What lies between a vector [b, d] of two samples; 0 for a [d] of all."""
    return 0 if vector is None or vector.dim() == 1 else vector.stride(0)


def _total(partial: Tensor, like: Tensor) -> Tensor:
    """Partial sums [b, p, d] added up to the gradient of `like`, [d] or [b, d]."""
    return partial.sum((0, 1) if like.dim() == 1 else 1).to(like.dtype)


def norm_rows(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, *, modulated: bool
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """(r [b, s, d] or None without y, out [b, s, d], mean and rstd [b, s] float32) for x and y [b, s, d], gate [b, d],
    scale and shift [b, d] or [d].
    """
    x, scale, shift = unit_rows(x), unit_rows(scale), unit_rows(shift)
    y, gate = (None if z is None else unit_rows(z) for z in (y, gate))
    out, r = x.new_empty(x.shape), None if y is None else x.new_empty(x.shape)
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    strides = (
        *row_strides(x),
        *(row_strides(y) if y is not None else (0, 0)),
        *map(_batch_stride, (gate, scale, shift)),
    )
    args = (x, y, gate, scale, shift, r, out, mean, rstd, *strides, *x.shape[1:], eps)
    launch(norm_rows_fwd_kernel, row_tiles(norm_rows_fwd_kernel, x), *args, MODULATED=modulated)
    return r, out, mean, rstd


def norm_rows_backward(
    dout: Tensor, dr: Tensor | None, r: Tensor, y: Tensor | None, gate: Tensor | None,
    scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor, *, modulated: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, dy, dgate, dscale, dshift); without a gate dy equals dx, and dy and dgate are returned empty."""
    r, scale, grid = unit_rows(r), unit_rows(scale), row_sums(norm_rows_bwd_kernel, r)
    dx, dscale, dshift = r.new_empty(r.shape), partial_sums(r, grid), partial_sums(r, grid)
    dr = None if dr is None else dr.contiguous()
    dy, dgate, y_strides = None, None, (0, 0)
    if gate is None:
        y = None
    else:
        y, gate, dy, dgate = unit_rows(y), unit_rows(gate), y.new_empty(y.shape), partial_sums(r, grid)
        y_strides = row_strides(y)
    args = (dout.contiguous(), dr, r, y, gate, scale, mean, rstd, dx, dy, dgate, dscale, dshift)
    strides = (*row_strides(r), *y_strides, _batch_stride(gate), _batch_stride(scale))
    launch(norm_rows_bwd_kernel, grid, *args, *strides, *r.shape[1:], MODULATED=modulated)
    dy, dgate = (r.new_empty(0), r.new_empty(0)) if gate is None else (dy, _total(dgate, gate))
    return dx, dy, dgate, _total(dscale, scale), _total(dshift, shift)
