"""Adaptive LayerNorm, `layer_norm(x) * (1 + scale) + shift` (Peebles & Xie, 2023), in Triton."""

from torch import Tensor

from mova_kernels.rows import check_inputs, per_sample
from mova_kernels.triton_norm import norm_rows, norm_rows_backward
from mova_kernels.triton_rows import opaque


@opaque("norm_modulate")
def norm_modulate_fwd(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [b, s, d], mean and rstd [b, s] float32)."""
    return norm_rows(x, None, None, scale, shift, eps, modulated=True)[1:]


@opaque("norm_modulate_backward")
def norm_modulate_bwd(
    dout: Tensor, x: Tensor, shift: Tensor, scale: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dshift, dscale)."""
    vectors = (scale, shift, mean, rstd)
    dx, _, _, dscale, dshift = norm_rows_backward(dout, None, x, None, None, *vectors, modulated=True)
    return dx, dshift, dscale


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
