"""LayerNorm with weight and bias (Ba et al., 2016) in Triton."""

from torch import Tensor

from mova_kernels.rows import check_inputs
from mova_kernels.triton_norm import norm_rows, norm_rows_backward
from mova_kernels.triton_rows import opaque


@opaque("layer_norm")
def layer_norm_fwd(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(out [b, s, d], mean and rstd [b, s] float32)."""
    return norm_rows(x, None, None, weight, bias, eps, modulated=False)[1:]


@opaque("layer_norm_backward")
def layer_norm_bwd(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias)."""
    dx, _, _, *dvectors = norm_rows_backward(dout, None, x, None, None, weight, bias, mean, rstd, modulated=False)
    return dx, *dvectors


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
