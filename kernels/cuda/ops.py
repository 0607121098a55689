"""Fused operators on NVIDIA GPUs in CUDA C++, forward and backward: float32, bfloat16 and float16.

x is [b, s, d]; all maths is in float32, rounded once; only statistics of the rows are saved beside the inputs. Rows may
lie anywhere; those aligned to 16 bytes are moved 16 bytes at a time, others value by value. Gradients of vectors are
summed in two stages without atomics: the same in every run on a device. Each is an operator `torch.ops.mova_cuda.*`
with a fake implementation and autograd, so that torch.compile and checkpointing see it. The library is loaded at the
first call; ImportError says why where it is absent. Each function raises ValueError for a wrong shape or device,
TypeError for a wrong dtype, and RuntimeError when a gradient of a gradient is asked for.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mova_kernels.cuda.library import load
from mova_kernels.rows import check_inputs, check_tables, per_sample, row_strides, unit_rows

# Blocks of a backward kernel for each multiprocessor of the device, and the fewest rows that are worth one.
_BLOCKS, _ROWS = 4, 4


def rms_norm_rope(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, *, eps: float, interleaved: bool) -> Tensor:
    """RMSNorm over the whole row, then rotary embedding (Su et al., 2021) of each head by angle cos/sin.

    x [b, s, h*e], weight [h*e], cos and sin [s, e/2] of any precision, which get no gradient. interleaved: pair i is
    channels (2i, 2i + 1); otherwise (i, i + e/2).
    """
    check_inputs("rms_norm_rope", x, vectors={"weight": weight})
    check_tables("rms_norm_rope", x, cos, sin)
    return rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved)[0]


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, eps: float) -> Tensor:
    """Adaptive LayerNorm (Peebles & Xie, 2023): `layer_norm(x) * (1 + scale) + shift`. x [b, s, d]; shift, scale
    [b, d], or [1, d] for all samples.
    """
    shift, scale = per_sample(x, shift), per_sample(x, scale)
    check_inputs("norm_modulate", x, per_sample={"shift": shift, "scale": scale})
    return norm_modulate_fwd(x, shift, scale, eps)[0]


def _operator(name: str, fake: Callable) -> Callable[[Callable], torch.library.CustomOpDef]:
    """Make a function the operator `mova_cuda::name`; `fake` gives uninitialised results of its shapes and dtypes."""

    def declare(function: Callable) -> torch.library.CustomOpDef:
        operator = torch.library.custom_op(f"mova_cuda::{name}", function, mutates_args=())
        operator.register_fake(fake)
        return operator

    return declare


def _floats(*vectors: Tensor) -> tuple[Tensor, ...]:
    """Weights and tables as the kernels read them: float32, contiguous."""
    return tuple(vector.float().contiguous() for vector in vectors)


def _modulation(vector: Tensor) -> tuple[Tensor, int]:
    """A modulation [b, d] as the kernels read it: float32 with adjacent channels, and how far its samples lie apart."""
    vector = unit_rows(vector.float())
    return vector, vector.stride(0)


def _programs(x: Tensor) -> int:
    """Blocks for each sample of x: enough to fill the device, or as many as there are rows for."""
    b, s, _ = x.shape
    return min((s + _ROWS - 1) // _ROWS, max(1, _BLOCKS * load().multiprocessors(x) // b))


def _column_sums(partial: Tensor, like: Tensor) -> Tensor:
    """partial [n, p, d] float32 added up over p, as `like` [n, d] or, for n = 1, [d]."""
    n, p, d = partial.shape
    out = like.new_empty(like.shape)
    load().launch("column_sums", out.dtype, partial, partial, out, n, p, d)
    return out


def _fake_rms_norm_rope_fwd(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1], dtype=torch.float32)


@_operator("rms_norm_rope_fwd", _fake_rms_norm_rope_fwd)
def rms_norm_rope_fwd(
    x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(out [b, s, d], rstd [b, s] float32)."""
    out, rstd = _fake_rms_norm_rope_fwd(x, weight, cos, sin, eps, interleaved)
    if x.numel():
        x, vectors = unit_rows(x), _floats(weight, cos, sin)
        sizes = (*x.shape, cos.shape[-1], eps, interleaved)
        load().launch("rms_norm_rope_fwd", x.dtype, x, x, *row_strides(x), *vectors, out, rstd, *sizes)
    return out, rstd


def _fake_rms_norm_rope_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@_operator("rms_norm_rope_bwd", _fake_rms_norm_rope_bwd)
def rms_norm_rope_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, rstd: Tensor, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """(dx [b, s, d], dweight [d])."""
    if not x.numel():
        return x.new_empty(x.shape), torch.zeros_like(weight)
    (b, s, d), p = x.shape, _programs(x)
    dx, partial = x.new_empty(x.shape), x.new_empty(b, p, d, dtype=torch.float32)
    x, dout = unit_rows(x), unit_rows(dout)
    vectors = _floats(weight, cos, sin, rstd)
    rows, sizes = (dout, *row_strides(dout), x, *row_strides(x)), (b, s, d, cos.shape[-1], interleaved, p)
    load().launch("rms_norm_rope_bwd", x.dtype, x, *rows, *vectors, dx, partial, *sizes)
    return dx, _column_sums(partial.view(1, b * p, d), weight)


def _fake_norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


@_operator("norm_modulate_fwd", _fake_norm_modulate_fwd)
def norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [b, s, d], mean and rstd [b, s] float32)."""
    out, mean, rstd = _fake_norm_modulate_fwd(x, shift, scale, eps)
    if x.numel():
        x, vectors = unit_rows(x), (*_modulation(shift), *_modulation(scale))
        load().launch("norm_modulate_fwd", x.dtype, x, x, *row_strides(x), *vectors, out, mean, rstd, *x.shape, eps)
    return out, mean, rstd


def _fake_norm_modulate_bwd(
    dout: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), shift.new_empty(shift.shape), scale.new_empty(scale.shape)


@_operator("norm_modulate_bwd", _fake_norm_modulate_bwd)
def norm_modulate_bwd(
    dout: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx [b, s, d], dshift and dscale [b, d])."""
    if not x.numel():
        return x.new_empty(x.shape), torch.zeros_like(shift), torch.zeros_like(scale)
    (b, s, d), p = x.shape, _programs(x)
    dx, sums = x.new_empty(x.shape), x.new_empty(2, b, p, d, dtype=torch.float32)
    x, dout = unit_rows(x), unit_rows(dout)
    rows, vectors = (dout, *row_strides(dout), x, *row_strides(x)), (*_modulation(scale), *_floats(mean, rstd))
    load().launch("norm_modulate_bwd", x.dtype, x, *rows, *vectors, dx, *sums, b, s, d, p)
    return dx, _column_sums(sums[0], shift), _column_sums(sums[1], scale)


def _save_rms_norm_rope(ctx, inputs, output) -> None:
    *tensors, _, ctx.interleaved = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _rms_norm_rope_grads(ctx, dout, _):
    return (*rms_norm_rope_bwd(dout, *ctx.saved_tensors, ctx.interleaved), None, None, None, None)


def _save_norm_modulate(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _norm_modulate_grads(ctx, dout, *_):
    return (*norm_modulate_bwd(dout, *ctx.saved_tensors), None)


def _no_second_derivative(ctx, *grads):
    raise RuntimeError("the CUDA C++ kernels have no second derivative; the reference implementation has")


rms_norm_rope_fwd.register_autograd(_rms_norm_rope_grads, setup_context=_save_rms_norm_rope)
norm_modulate_fwd.register_autograd(_norm_modulate_grads, setup_context=_save_norm_modulate)
for _backward in (rms_norm_rope_bwd, norm_modulate_bwd):
    _backward.register_autograd(_no_second_derivative)
