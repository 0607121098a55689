"""RMSNorm over the whole row, then rotary embedding of each head (Su et al., 2021), in one Triton kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import check_inputs, check_tables, row_strides, unit_rows
from mova_kernels.triton_rows import launch, opaque, partial_sums, row_sums, row_tiles, tiles_of


@triton.jit
def load_heads(base, rows, row_stride, heads, mask, HALF: tl.constexpr, WIDE: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Both members of every pair of the given heads in the rows at `base`; two float32 [R, H, WIDE], zero where mask
    [R, H, 1] is False and beyond the HALF pairs of a head.
    """
    place = base + rows[:, None, None] * row_stride + heads[None, :, None] * (2 * HALF)
    if INTERLEAVED:
        # Read as one contiguous tile, then taken apart: pair i is channels (2i, 2i + 1).
        channels = tl.arange(0, 2 * WIDE)[None, None, :]
        both = tl.load(place + channels, mask & (channels < 2 * HALF), 0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(both, (rows.shape[0], heads.shape[0], WIDE, 2)))
    else:
        channels = tl.arange(0, WIDE)[None, None, :]
        mask &= channels < HALF
        first = tl.load(place + channels, mask, 0.0).to(tl.float32)
        second = tl.load(place + channels + HALF, mask, 0.0).to(tl.float32)
    return first, second


@triton.jit
def store_heads(
    base, rows, row_stride, heads, mask, first, second,
    HALF: tl.constexpr, WIDE: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_heads`."""
    place = base + rows[:, None, None] * row_stride + heads[None, :, None] * (2 * HALF)
    if INTERLEAVED:
        channels = tl.arange(0, 2 * WIDE)[None, None, :]
        both = tl.reshape(tl.join(first, second), (rows.shape[0], heads.shape[0], 2 * WIDE))
        tl.store(place + channels, both, mask & (channels < 2 * HALF))
    else:
        channels = tl.arange(0, WIDE)[None, None, :]
        mask &= channels < HALF
        tl.store(place + channels, first, mask)
        tl.store(place + channels + HALF, second, mask)


@triton.jit
def load_angles(table, rows, inside, HALF: tl.constexpr, WIDE: tl.constexpr):
    """cos or sin, [s, HALF], of the rows at `table`; float32 [R, 1, WIDE]."""
    pairs = tl.arange(0, WIDE)[None, None, :]
    return tl.load(table + rows[:, None, None] * HALF + pairs, inside[:, None, None] & (pairs < HALF), 0.0)


@triton.jit
def rms_norm_rope_fwd_kernel(
    x, weight, cos, sin, out, rstd, x_batch, x_row, s, d, eps,
    HALF: tl.constexpr, WIDE: tl.constexpr, INTERLEAVED: tl.constexpr,
    LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """out and rstd of every p-th row tile."""
    HEADS: tl.constexpr = COLS // (2 * WIDE) if COLS > 2 * WIDE else 1
    batch, rows, one = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS), tl.arange(0, 1)
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
        c = load_angles(cos + first * HALF, rows, inside, HALF, WIDE)
        z = load_angles(sin + first * HALF, rows, inside, HALF, WIDE)
        for head in range(0, d // (2 * HALF), HEADS):
            heads = head + tl.arange(0, HEADS)
            there = (heads < d // (2 * HALF))[None, :, None]
            mask = inside[:, None, None] & there
            n1, n2 = load_heads(x_tile, rows, x_row, heads, mask, HALF, WIDE, INTERLEAVED)
            w1, w2 = load_heads(weight, one, 0, heads, there, HALF, WIDE, INTERLEAVED)
            n1, n2 = n1 * scale[:, None, None] * w1, n2 * scale[:, None, None] * w2
            r1, r2 = n1 * c - n2 * z, n1 * z + n2 * c
            store_heads(out + row * d, rows, d, heads, mask, r1, r2, HALF, WIDE, INTERLEAVED)


@triton.jit
def rms_norm_rope_bwd_kernel(
    dout, x, weight, cos, sin, rstd, dx, dweight, x_batch, x_row, s, d,
    HALF: tl.constexpr, WIDE: tl.constexpr, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """dx of every p-th row tile, and their part of dweight.

    With u = dout rotated back, n = x * rstd, g = u * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(u * n).
    """
    HEADS: tl.constexpr = COLS // (2 * WIDE) if COLS > 2 * WIDE else 1
    batch, rows, one = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS), tl.arange(0, 1)
    dweight += (batch * tl.num_programs(0) + tl.program_id(0)) * d
    for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * ROWS
        inside = first + rows < s
        x_tile = x + batch * x_batch + first * x_row
        row = batch * s + first
        scale = tl.load(rstd + row + rows, inside, 0.0)
        c = load_angles(cos + first * HALF, rows, inside, HALF, WIDE)
        z = load_angles(sin + first * HALF, rows, inside, HALF, WIDE)
        products = tl.zeros((ROWS, HEADS, WIDE), tl.float32)
        for head in range(0, d // (2 * HALF), HEADS):
            heads = head + tl.arange(0, HEADS)
            there = (heads < d // (2 * HALF))[None, :, None]
            mask = inside[:, None, None] & there
            n1, n2 = load_heads(x_tile, rows, x_row, heads, mask, HALF, WIDE, INTERLEAVED)
            w1, w2 = load_heads(weight, one, 0, heads, there, HALF, WIDE, INTERLEAVED)
            g1, g2 = load_heads(dout + row * d, rows, d, heads, mask, HALF, WIDE, INTERLEAVED)
            products += (g1 * c + g2 * z) * w1 * n1 + (g2 * c - g1 * z) * w2 * n2
        mean = tl.sum(tl.sum(products, 2), 1) * scale / d
        for head in range(0, d // (2 * HALF), HEADS):
            heads = head + tl.arange(0, HEADS)
            there = (heads < d // (2 * HALF))[None, :, None]
            mask = inside[:, None, None] & there
            n1, n2 = load_heads(x_tile, rows, x_row, heads, mask, HALF, WIDE, INTERLEAVED)
            n1, n2 = n1 * scale[:, None, None], n2 * scale[:, None, None]
            w1, w2 = load_heads(weight, one, 0, heads, there, HALF, WIDE, INTERLEAVED)
            g1, g2 = load_heads(dout + row * d, rows, d, heads, mask, HALF, WIDE, INTERLEAVED)
            u1, u2 = g1 * c + g2 * z, g2 * c - g1 * z
            dx1 = scale[:, None, None] * (u1 * w1 - n1 * mean[:, None, None])
            dx2 = scale[:, None, None] * (u2 * w2 - n2 * mean[:, None, None])
            store_heads(dx + row * d, rows, d, heads, mask, dx1, dx2, HALF, WIDE, INTERLEAVED)
            p1, p2 = load_heads(dweight, one, 0, heads, there, HALF, WIDE, INTERLEAVED)
            # This program's partial sums are uninitialised before its first tile.
            p1 = tl.where(tile == tl.program_id(0), 0.0, p1) + tl.sum(u1 * n1, 0)[None, :, :]
            p2 = tl.where(tile == tl.program_id(0), 0.0, p2) + tl.sum(u2 * n2, 0)[None, :, :]
            store_heads(dweight, one, 0, heads, there, p1, p2, HALF, WIDE, INTERLEAVED)
        # What one thread has added up another may read for the next tile.
        tl.debug_barrier()


def _constants(cos: Tensor, interleaved: bool) -> dict[str, int | bool]:
    half = cos.shape[-1]
    return {"HALF": half, "WIDE": triton.next_power_of_2(half), "INTERLEAVED": interleaved}


@opaque("rms_norm_rope")
def rms_norm_rope_fwd(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(out [b, s, d], rstd [b, s] float32)."""
    x, weight, cos, sin = unit_rows(x), weight.contiguous(), cos.float().contiguous(), sin.float().contiguous()
    out, rstd = x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)
    args = (x, weight, cos, sin, out, rstd, *row_strides(x), *x.shape[1:], eps)
    launch(rms_norm_rope_fwd_kernel, row_tiles(rms_norm_rope_fwd_kernel, x), *args, **_constants(cos, interleaved))
    return out, rstd


@opaque("rms_norm_rope_backward")
def rms_norm_rope_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(dx, dweight)."""
    x, grid = unit_rows(x), row_sums(rms_norm_rope_bwd_kernel, x)
    cos, sin = cos.float().contiguous(), sin.float().contiguous()
    dx, dweight = x.new_empty(x.shape), partial_sums(x, grid)
    args = (dout.contiguous(), x, weight.contiguous(), cos, sin, rstd, dx, dweight, *row_strides(x), *x.shape[1:])
    launch(rms_norm_rope_bwd_kernel, grid, *args, **_constants(cos, interleaved))
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
    check_tables("rms_norm_rope", x, cos, sin)
    return rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved)[0]
