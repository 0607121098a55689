"""Adaptive LayerNorm, `layer_norm(x) * (1 + scale) + shift` (Peebles & Xie, 2023), in Triton."""

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
    per_sample,
    row_programs,
    row_strides,
    row_tiles,
    unit_rows,
)


@triton.jit
def norm_modulate_fwd_kernel(
    x, shift, scale, out, mean, rstd, x_batch, x_row, shift_batch, scale_batch, s, d, eps,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_fwd(
        x, None, None, scale, shift, None, out, mean, rstd,
        x_batch, x_row, 0, 0, 0, scale_batch, shift_batch, s, d, eps, True, ROWS, COLS,
    )  # fmt: skip


@triton.jit
def norm_modulate_bwd_kernel(
    dout, x, scale, mean, rstd, dx, dshift, dscale, x_batch, x_row, scale_batch, s, d,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    norm_rows_bwd(
        dout, None, x, None, None, scale, mean, rstd, dx, None, None, dscale, dshift,
        x_batch, x_row, 0, 0, 0, scale_batch, s, d, True, ROWS, COLS,
    )  # fmt: skip


def _fake_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@opaque("norm_modulate", _fake_fwd)
def norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [b, s, d], mean and rstd [b, s] float32)."""
    x, shift, scale = unit_rows(x), unit_rows(shift), unit_rows(scale)
    out, mean, rstd = _fake_fwd(x, shift, scale, eps)
    strides = (*row_strides(x), shift.stride(0), scale.stride(0))
    args = (x, shift, scale, out, mean, rstd, *strides, *x.shape[1:], eps)
    launch(norm_modulate_fwd_kernel, row_tiles(x), *args, ROWS=ROWS, COLS=COLS)
    return out, mean, rstd


def _fake_bwd(
    dout: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), shift.new_empty(shift.shape), scale.new_empty(scale.shape)


@opaque("norm_modulate_backward", _fake_bwd)
def norm_modulate_bwd(
    dout: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale)."""
    x, scale, grid = unit_rows(x), unit_rows(scale), row_programs(x)
    dx, dshift, dscale = x.new_empty(x.shape), partial_sums(x, grid), partial_sums(x, grid)
    strides = (*row_strides(x), scale.stride(0))
    args = (dout.contiguous(), x, scale, mean, rstd, dx, dshift, dscale, *strides, *x.shape[1:])
    launch(norm_modulate_bwd_kernel, grid, *args, ROWS=ROWS, COLS=COLS)
    return dx, dshift.sum(1).to(shift.dtype), dscale.sum(1).to(scale.dtype)


def _save(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _backward(ctx, dout, *_):
    return (*norm_modulate_bwd(dout, *ctx.saved_tensors), None)


norm_modulate_fwd.register_autograd(_backward, setup_context=_save)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """LayerNorm without weight, then modulation. x [b, s, d] in float32, bfloat16 or float16; shift, scale [b, d].

    Returns x's dtype. Raises ValueError or TypeError for inputs of other shapes, dtypes or devices.
    """
    shift, scale = per_sample(x, shift), per_sample(x, scale)
    check_inputs("norm_modulate", x, per_sample={"shift": shift, "scale": scale})
    return norm_modulate_fwd(x, shift, scale, eps)[0]
