"""Rows as float8_e4m3fn with a scale each, in Triton; forward only, for GPUs that convert to fp8 (8.9 and later)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.rows import DTYPES, unit_rows
from mova_kernels.triton_rows import grid_of, launch, opaque, tiles_of


@triton.jit
def load_scaled(x, factor, x_row, rows, cols, mask, d):
    """x * factor for the tile at rows and cols; float32 [ROWS, COLS]."""
    value = tl.load(x + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
    if factor is not None:
        value *= tl.load(factor + cols, cols < d, 0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def quantize_rows_fwd_kernel(
    x, factor, values, scale, x_row, n, d, LOOP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Of every p-th row tile the largest magnitudes, then `x / scale` rounded; a tile is read twice."""
    rows = tl.arange(0, ROWS)
    begin, end, step = tiles_of(n, ROWS, LOOP)
    for tile in range(begin, end, step):
        first = tl.cast(tile, tl.int64) * ROWS
        inside, x_tile = first + rows < n, x + first * x_row
        largest = tl.zeros((ROWS, COLS), tl.float32)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            largest = tl.maximum(largest, tl.abs(load_scaled(x_tile, factor, x_row, rows, cols, mask, d)))
        # 448 is the format's largest value; a row of zeros takes the least normal float32.
        unit = tl.maximum(tl.math.div_rn(tl.max(largest, 1), 448.0), 1.1754943508222875e-38)
        tl.store(scale + first + rows, unit, inside)
        for start in range(0, d, COLS):
            cols = start + tl.arange(0, COLS)
            mask = inside[:, None] & (cols < d)[None, :]
            value = tl.math.div_rn(load_scaled(x_tile, factor, x_row, rows, cols, mask, d), unit[:, None])
            tl.store(values + (first + rows)[:, None] * d + cols[None, :], value.to(tl.float8e4nv), mask)


@opaque("quantize_rows")
def quantize_rows_fwd(x: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """(values, scale) of x [.., d]."""
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    values = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    rows = unit_rows(x.reshape(-1, x.shape[-1]))
    factor = None if factor is None else factor.contiguous()
    grid = grid_of(quantize_rows_fwd_kernel, rows, 1, len(rows))
    launch(quantize_rows_fwd_kernel, grid, rows, factor, values, scale, rows.stride(0), *rows.shape)
    return values, scale


def quantize_rows(x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Rows of x * factor as float8_e4m3fn with a scale each: (values [.., d], scale [.., 1] float32).

    `scale = max|row| / 448`. x [.., d] and factor [d] (or None) in float32, bfloat16 or float16. Forward only: asking
    for a gradient raises. Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    if x.dim() == 0 or x.shape[-1] == 0 or (factor is not None and factor.shape != x.shape[-1:]):
        shapes = f"{list(x.shape)} and {None if factor is None else list(factor.shape)}"
        raise ValueError(f"quantize_rows: x must be [.., d] with d > 0 and factor [d] or None, got {shapes}")
    for name, tensor in (("x", x), ("factor", factor)):
        if tensor is not None and tensor.dtype not in DTYPES:
            known = ", ".join(map(str, DTYPES))
            raise TypeError(f"quantize_rows: {name} is {tensor.dtype}; the Triton kernel takes {known}")
        if tensor is not None and tensor.device != x.device:
            raise ValueError(f"quantize_rows: {name} is on {tensor.device}, x on {x.device}")
    return quantize_rows_fwd(x, factor)
