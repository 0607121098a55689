"""Bias and GELU in one pass, `gelu(x + bias)` with the tanh approximation, in Triton; and a linear layer before it.

gelu(v) = v * t with t = sigmoid(2u), u = sqrt(2/pi) (v + 0.044715 v^3): the tanh form, since tanh(u) = 2 t - 1. Its
derivative is t + v * t * (1 - t) * 2u'. Only x is kept for the backward.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import check_inputs, row_strides, unit_rows
from mova_kernels.triton_rows import launch, opaque, partial_sums, row_sums, row_tiles, tiles_of


@triton.jit
def gelu_share(v):
    """(t, 2u'): the share of v that passes, and the slope of the sigmoid's argument."""
    # 2 sqrt(2/pi), and three times 0.044715.
    square = v * v
    share = tl.sigmoid(1.5957691216057308 * v * (1.0 + 0.044715 * square))
    return share, 1.5957691216057308 * (1.0 + 0.134145 * square)


@triton.jit
def bias_gelu_fwd_kernel(
    x, bias, out, x_batch, x_row, s, d, LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """out of every p-th row tile."""
    batch, rows = tl.program_id(1).to(tl.int64), tl.arange(0, ROWS)
    begin, end, step = tiles_of(s, ROWS, LOOP)
    for tile in range(begin, end, step):
        first = tl.cast(tile, tl.int64) * ROWS
        x_tile, out_tile = x + batch * x_batch + first * x_row, out + (batch * s + first) * d
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = (first + rows < s)[:, None] & (cols < d)[None, :]
            v = tl.load(x_tile + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
            v += tl.load(bias + cols, cols < d, 0.0).to(tl.float32)[None, :]
            share, _ = gelu_share(v)
            tl.store(out_tile + rows[:, None] * d + cols[None, :], v * share, mask)


@triton.jit
def bias_gelu_bwd_kernel(dout, x, bias, dx, dbias, x_batch, x_row, s, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """dx of every p-th row tile, and its part of dbias = sum(dx) before rounding."""
    batch = tl.program_id(1).to(tl.int64)
    dbias += (batch * tl.num_programs(0) + tl.program_id(0)) * d
    rows = tl.arange(0, ROWS)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        offset = tl.load(bias + cols, cols < d, 0.0).to(tl.float32)[None, :]
        total = tl.zeros((COLS,), tl.float32)
        for tile in range(tl.program_id(0), tl.cdiv(s, ROWS), tl.num_programs(0)):
            first = tl.cast(tile, tl.int64) * ROWS
            mask = (first + rows < s)[:, None] & (cols < d)[None, :]
            place = (batch * s + first) * d + rows[:, None] * d + cols[None, :]
            v = tl.load(x + batch * x_batch + first * x_row + rows[:, None] * x_row + cols[None, :], mask, 0.0)
            v = v.to(tl.float32) + offset
            share, slope = gelu_share(v)
            # Where the share is 0 or 1 nothing is left of the slope; v * slope alone could overflow.
            bend = tl.where(share * (1.0 - share) > 0.0, v * (share * (1.0 - share)) * slope, 0.0)
            g = tl.load(dout + place, mask, 0.0).to(tl.float32) * (share + bend)
            tl.store(dx + place, g, mask)
            total += tl.sum(g, 0)
        tl.store(dbias + cols, total, cols < d)


@opaque("bias_gelu")
def bias_gelu_fwd(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias)."""
    x, bias = unit_rows(x), bias.contiguous()
    out = x.new_empty(x.shape)
    launch(bias_gelu_fwd_kernel, row_tiles(bias_gelu_fwd_kernel, x), x, bias, out, *row_strides(x), *x.shape[1:])
    return out


@opaque("bias_gelu_backward")
def bias_gelu_bwd(dout: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(dx, dbias)."""
    x, bias, grid = unit_rows(x), bias.contiguous(), row_sums(bias_gelu_bwd_kernel, x)
    dx, dbias = x.new_empty(x.shape), partial_sums(x, grid)
    launch(bias_gelu_bwd_kernel, grid, dout.contiguous(), x, bias, dx, dbias, *row_strides(x), *x.shape[1:])
    return dx, dbias.sum((0, 1)).to(bias.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, dout):
    return bias_gelu_bwd(dout, *ctx.saved_tensors)


bias_gelu_fwd.register_autograd(_backward, setup_context=_save)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x + bias)` (Hendrycks & Gimpel, 2016). x [b, s, d], bias [d]; float32, bfloat16 or float16.

    Returns x's dtype. Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    check_inputs("bias_gelu", x, vectors={"bias": bias})
    return bias_gelu_fwd(x, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x W^T + b)`: torch's product, then bias and GELU in one pass. x [b, s, i], weight [o, i], bias [o].

    Keeps the product, not its sum with the bias, for the backward. Raises as `bias_gelu` does.
    """
    check_inputs("linear_gelu", x)
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or bias.shape != weight.shape[:1]:
        shapes = f"weight {list(weight.shape)} and bias {list(bias.shape)}"
        raise ValueError(f"linear_gelu: weight must be [o, i] and bias [o] beside x {list(x.shape)}, got {shapes}")
    if weight.dtype != x.dtype:
        raise TypeError(f"linear_gelu: weight must have x's dtype {x.dtype}, got {weight.dtype}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.device != x.device:
            raise ValueError(f"linear_gelu: {name} is on {tensor.device}, x on {x.device}")
    return bias_gelu(torch.nn.functional.linear(x, weight), bias)
