"""LayerNorm with weight and bias (Ba et al., 2016) in Triton."""

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
    row_programs,
    row_strides,
    row_tiles,
    unit_rows,
)


@triton.jit
def layer_norm_fwd_kernel(
    x, weight, bias, out, mean, rstd, x_batch, x_row, s, d, eps, ROWS: tl.constexpr, COLS: tl.constexpr
):
    norm_rows_fwd(
        x, None, None, weight, bias, None, out, mean, rstd, x_batch, x_row, 0, 0, 0, 0, 0, s, d, eps, False, ROWS, COLS
    )  # fmt: skip


@triton.jit
def layer_norm_bwd_kernel(
    dout, x, weight, mean, rstd, dx, dweight, dbias, x_batch, x_row, s, d, ROWS: tl.constexpr, COLS: tl.constexpr
):
    norm_rows_bwd(
        dout, None, x, None, None, weight, mean, rstd, dx, None, None, dweight, dbias,
        x_batch, x_row, 0, 0, 0, 0, s, d, False, ROWS, COLS,
    )  # fmt: skip


def _fake_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@opaque("layer_norm", _fake_fwd)
def layer_norm_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [b, s, d], mean and rstd [b, s] float32)."""
    x = unit_rows(x)
    out, mean, rstd = _fake_fwd(x, weight, bias, eps)
    args = (x, weight.contiguous(), bias.contiguous(), out, mean, rstd, *row_strides(x), *x.shape[1:], eps)
    launch(layer_norm_fwd_kernel, row_tiles(x), *args, ROWS=ROWS, COLS=COLS)
    return out, mean, rstd


def _fake_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


@opaque("layer_norm_backward", _fake_bwd)
def layer_norm_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias)."""
    x, grid = unit_rows(x), row_programs(x)
    dx, dweight, dbias = x.new_empty(x.shape), partial_sums(x, grid), partial_sums(x, grid)
    args = (dout.contiguous(), x, weight.contiguous(), mean, rstd, dx, dweight, dbias, *row_strides(x), *x.shape[1:])
    launch(layer_norm_bwd_kernel, grid, *args, ROWS=ROWS, COLS=COLS)
    return dx, dweight.sum((0, 1)).to(weight.dtype), dbias.sum((0, 1)).to(bias.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward(ctx, dout, *_):
    return (*layer_norm_bwd(dout, *ctx.saved_tensors), None)


layer_norm_fwd.register_autograd(_backward, setup_context=_save)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """LayerNorm over the last axis. x [b, s, d], weight and bias [d]; float32, bfloat16 or float16; returns x's dtype.

    Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    check_inputs("layer_norm", x, vectors={"weight": weight, "bias": bias})
    return layer_norm_fwd(x, weight, bias, eps)[0]
