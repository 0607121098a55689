"""LayerNorm over rows with what the engine's operators put before and after it: the body of four operators' kernels.

Forward: `r = x + gate * y` (y and gate optional), rounded to x's dtype, then `out = n * a + c` with n = (r - mean) *
rstd; a = scale or, where MODULATED, 1 + scale; c = shift. Vectors lie `<name>_batch` apart for each sample: 0 for a
norm's own weight and bias.

Backward, with g = dout * a (Ba et al., 2016): dr' = dr + rstd * (g - mean(g) - n * mean(g * n)); dx = dr';
dy = gate * dr'; dgate = sum(dr' * y); dscale = sum(dout * n); dshift = sum(dout).
"""

import triton
import triton.language as tl

from mova_kernels.triton_rows import add_to_partial


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
def norm_rows_fwd(
    x, y, gate, scale, shift, r, out, mean, rstd,
    x_batch, x_row, y_batch, y_row, gate_batch, scale_batch, shift_batch,
    s, d, eps, MODULATED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """One row tile: r (where y is there), out, and the statistics mean and rstd [b, s]."""
    batch, first = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.arange(0, ROWS)
    inside = first + rows < s
    row = batch * s + first
    x += batch * x_batch + first * x_row
    scale += batch * scale_batch
    shift += batch * shift_batch
    if y is not None:
        y += batch * y_batch + first * y_row
    if gate is not None:
        gate += batch * gate_batch
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
def norm_rows_bwd(
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
