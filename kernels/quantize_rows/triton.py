"""Rows as float8_e4m3fn with a scale each, in Triton; forward only, for GPUs that convert to fp8 (8.9 and later)."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mova_kernels.triton_rows import COLS, DTYPES, ROWS, launch, opaque, unit_rows


@triton.jit
def load_scaled(x, factor, x_row, rows, cols, mask, d):
    """x * factor for the tile at rows and cols; float32 [ROWS, COLS]."""
    value = tl.load(x + rows[:, None] * x_row + cols[None, :], mask, 0.0).to(tl.float32)
    if factor is not None:
        value *= tl.load(factor + cols, cols < d, 0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def quantize_rows_fwd_kernel(x, factor, values, scale, x_row, n, d, ROWS: tl.constexpr, COLS: tl.constexpr):
    """One row tile: the largest magnitude, then `x / scale` rounded; the tile is read twice."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    rows = tl.arange(0, ROWS)
    inside = first + rows < n
    x += first * x_row
    largest = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < d)[None, :]
        largest = tl.maximum(largest, tl.abs(load_scaled(x, factor, x_row, rows, cols, mask, d)))
    # 448 is the format's largest value; a row of zeros takes the least normal float32.
    step = tl.maximum(tl.math.div_rn(tl.max(largest, 1), 448.0), 1.1754943508222875e-38)
    tl.store(scale + first + rows, step, inside)
    for start in range(0, d, COLS):
        cols = start + tl.arange(0, COLS)
        mask = inside[:, None] & (cols < d)[None, :]
        value = tl.math.div_rn(load_scaled(x, factor, x_row, rows, cols, mask, d), step[:, None])
        tl.store(values + (first + rows)[:, None] * d + cols[None, :], value.to(tl.float8e4nv), mask)


def _fake(x: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    scale = x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn), scale


@opaque("quantize_rows", _fake)
def quantize_rows_fwd(x: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """(values, scale) of x [.., d]."""
    values, scale = _fake(x, factor)
    rows = unit_rows(x.reshape(-1, x.shape[-1]))
    factor = None if factor is None else factor.contiguous()
    args = (rows, factor, values, scale, rows.stride(0), *rows.shape)
    launch(quantize_rows_fwd_kernel, (triton.cdiv(len(rows), ROWS),), *args, ROWS=ROWS, COLS=COLS)
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
