"""RMSNorm over the whole row, then rotary embedding of each head (Su et al., 2021), in one Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.triton_rows import (
    COLS,
    ROWS,
    check_inputs,
    launch,
    opaque,
    partial_sums,
    row_programs,
    row_strides,
    row_tiles,
    unit_rows,
)


@triton.jit
def load_pairs(base, rows, row_stride, pairs, inside, d, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both members of the given pairs in the rows at `base`; two float32 [R, P], zero outside the rows or the width."""
    if INTERLEAVED:
        # Read as one contiguous tile, then taken apart: pair i is channels (2i, 2i + 1).
        cols = tl.min(pairs, 0) * 2 + tl.arange(0, 2 * pairs.shape[0])
        place = rows[:, None] * row_stride + cols[None, :]
        both = tl.load(base + place, inside[:, None] & (cols < d)[None, :], 0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (rows.shape[0], pairs.shape[0], 2)))
    else:
        cols = pairs // HALF * (2 * HALF) + pairs % HALF
        place = rows[:, None] * row_stride + cols[None, :]
        mask = inside[:, None] & (2 * pairs < d)[None, :]
        first = tl.load(base + place, mask, 0.0).to(tl.float32)
        second = tl.load(base + place + HALF, mask, 0.0).to(tl.float32)
    return first, second


@triton.jit
def store_pairs(base, rows, row_stride, pairs, inside, d, first, second, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The inverse of `load_pairs`."""
    if INTERLEAVED:
        cols = tl.min(pairs, 0) * 2 + tl.arange(0, 2 * pairs.shape[0])
        both = tl.reshape(tl.join(first, second), (rows.shape[0], 2 * pairs.shape[0]))
        place = rows[:, None] * row_stride + cols[None, :]
        tl.store(base + place, both, inside[:, None] & (cols < d)[None, :])
    else:
        cols = pairs // HALF * (2 * HALF) + pairs % HALF
        place = rows[:, None] * row_stride + cols[None, :]
        mask = inside[:, None] & (2 * pairs < d)[None, :]
        tl.store(base + place, first, mask)
        tl.store(base + place + HALF, second, mask)


@triton.jit
def load_angles(cos, sin, first, rows, pairs, inside, HALF: tl.constexpr):
    """cos and sin of the given pairs at the rows from `first` on, out of [s, e/2]; two float32 [R, P]."""
    place = first * HALF + rows[:, None] * HALF + (pairs % HALF)[None, :]
    return tl.load(cos + place, inside[:, None], 0.0), tl.load(sin + place, inside[:, None], 0.0)


@triton.jit
def rms_norm_rope_fwd_kernel(
    x, weight, cos, sin, out, rstd, x_batch, x_row, s, d, eps,
    HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out and rstd of one row tile."""
    batch, first = tl.program_id(1).to(tl.int64), tl.program_id(0).to(tl.int64) * ROWS
    rows, one = tl.arange(0, ROWS), tl.arange(0, 1)
    inside = first + rows < s
    x += batch * x_batch + first * x_row
    out += (batch * s + first) * d
    squares = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < d)[None, :]
        value = tl.load(x + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
        squares += value * value
    scale = 1.0 / tl.sqrt(tl.sum(squares, 1) / d + eps)
    tl.store(rstd + batch * s + first + rows, scale, inside)
    for start in range(0, d, COLS):
        pairs = start // 2 + tl.arange(0, COLS // 2)
        n1, n2 = load_pairs(x, rows, x_row, pairs, inside, d, HALF, INTERLEAVED)
        w1, w2 = load_pairs(weight, one, 0, pairs, one == 0, d, HALF, INTERLEAVED)
        n1, n2 = n1 * scale[:, None] * w1, n2 * scale[:, None] * w2
        c, z = load_angles(cos, sin, first, rows, pairs, inside, HALF)
        store_pairs(out, rows, d, pairs, inside, d, n1 * c - n2 * z, n1 * z + n2 * c, HALF, INTERLEAVED)


@triton.jit
def rms_norm_rope_bwd_kernel(
    dout, x, weight, cos, sin, rstd, dx, dweight, x_batch, x_row, s, d,
    HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dx of every p-th row tile, and their part of dweight.

    With u = dout rotated back, n = x * rstd, g = u * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(u * n).
    """
    batch = tl.program_id(1).to(tl.int64)
    dweight += (batch * tl.num_programs(0) + tl.program_id(0)) * d
    rows, one = tl.arange(0, ROWS), tl.arange(0, 1)
    for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        x_tile = x + batch * x_batch + first * x_row
        row = batch * s + first
        scale = tl.load(rstd + row + rows, inside, 0.0)
        products = tl.zeros((ROWS, COLS // 2), tl.float32)
        for start in range(0, d, COLS):
            pairs = start // 2 + tl.arange(0, COLS // 2)
            n1, n2 = load_pairs(x_tile, rows, x_row, pairs, inside, d, HALF, INTERLEAVED)
            w1, w2 = load_pairs(weight, one, 0, pairs, one == 0, d, HALF, INTERLEAVED)
            g1, g2 = load_pairs(dout + row * d, rows, d, pairs, inside, d, HALF, INTERLEAVED)
            c, z = load_angles(cos, sin, first, rows, pairs, inside, HALF)
            products += (g1 * c + g2 * z) * w1 * n1 + (g2 * c - g1 * z) * w2 * n2
        mean = tl.sum(products, 1) * scale / d
        for start in range(0, d, COLS):
            pairs = start // 2 + tl.arange(0, COLS // 2)
            n1, n2 = load_pairs(x_tile, rows, x_row, pairs, inside, d, HALF, INTERLEAVED)
            n1, n2 = n1 * scale[:, None], n2 * scale[:, None]
            w1, w2 = load_pairs(weight, one, 0, pairs, one == 0, d, HALF, INTERLEAVED)
            g1, g2 = load_pairs(dout + row * d, rows, d, pairs, inside, d, HALF, INTERLEAVED)
            c, z = load_angles(cos, sin, first, rows, pairs, inside, HALF)
            u1, u2 = g1 * c + g2 * z, g2 * c - g1 * z
            dx1 = scale[:, None] * (u1 * w1 - n1 * mean[:, None])
            dx2 = scale[:, None] * (u2 * w2 - n2 * mean[:, None])
            store_pairs(dx + row * d, rows, d, pairs, inside, d, dx1, dx2, HALF, INTERLEAVED)
            # This program's partial sums are uninitialised before its first tile.
            later = (one == 0) & (tile != tl.program_id(0))
            p1, p2 = load_pairs(dweight, one, 0, pairs, later, d, HALF, INTERLEAVED)
            p1 += tl.sum(u1 * n1, 0)[None, :]
            p2 += tl.sum(u2 * n2, 0)[None, :]
            store_pairs(dweight, one, 0, pairs, one == 0, d, p1, p2, HALF, INTERLEAVED)
        # What one thread has added up another may read for the next tile.
        tl.debug_barrier()


def _fake_fwd(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@opaque("rms_norm_rope", _fake_fwd)
def rms_norm_rope_fwd(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(out [b, s, d], rstd [b, s] float32)."""
    x, weight, cos, sin = unit_rows(x), weight.contiguous(), cos.float().contiguous(), sin.float().contiguous()
    out, rstd = _fake_fwd(x, weight, cos, sin, eps, interleaved)
    args = (x, weight, cos, sin, out, rstd, *row_strides(x), *x.shape[1:], eps)
    constants = {"HALF": cos.shape[-1], "INTERLEAVED": interleaved, "ROWS": ROWS, "COLS": COLS}
    launch(rms_norm_rope_fwd_kernel, row_tiles(x), *args, **constants)
    return out, rstd


def _fake_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@opaque("rms_norm_rope_backward", _fake_bwd)
def rms_norm_rope_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(dx, dweight)."""
    x, grid = unit_rows(x), row_programs(x)
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    dx, dweight = x.new_empty(x.shape), partial_sums(x, grid)
    args = (dout.contiguous(), x, weight.contiguous(), cos, sin, rstd, dx, dweight, *row_strides(x), *x.shape[1:])
    constants = {"HALF": cos.shape[-1], "INTERLEAVED": interleaved, "ROWS": ROWS, "COLS": COLS}
    launch(rms_norm_rope_bwd_kernel, grid, *args, **constants)
    return dx, dweight.sum((0, 1)).to(weight.dtype)


def _save(ctx, inputs, output) -> None:
    *tensors, _, ctx.interleaved = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx, dout, _):
    return (*rms_norm_rope_bwd(dout, *ctx.saved_tensors, ctx.interleaved), None, None, None, None)


rms_norm_rope_fwd.register_autograd(_backward, setup_context=_save)


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm over the row, then rotation of each head. x [b, s, h*e], weight [h*e], cos and sin [s, e/2] without
    gradient.

    x and weight in float32, bfloat16 or float16, tables in any precision; returns x's dtype. interleaved: pair i is
    channels (2i, 2i + 1), else (i, i + e/2). Raises ValueError or TypeError for inputs of other shapes, dtypes or
    devices.
    """
    check_inputs("rms_norm_rope", x, vectors={"weight": weight})
    s, d = x.shape[1:]
    if cos.dim() != 2 or cos.shape != sin.shape or cos.shape[0] != s or d % (2 * cos.shape[1]):
        tables = f"cos {list(cos.shape)} and sin {list(sin.shape)}"
        raise ValueError(f"rms_norm_rope: cos and sin must be [s, e/2] with e a divisor of {d} and s {s}, got {tables}")
    if cos.device != x.device or sin.device != x.device:
        raise ValueError(f"rms_norm_rope: cos is on {cos.device}, sin on {sin.device}, x on {x.device}")
    return rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved)[0]
