"""A linear layer that is trained, its three products of fp8 numbers: output, input's gradient, weight's gradient.

The weight stays in its own dtype. Each factor of a product is quantised where it is used, in rows along the sum, by
`quantize_rows`: a scale for each token or output for `x W^T`, for each token or input for `g W`, for each output or
input for `g^T x`. (Formats: Micikevicius et al., "FP8 formats for deep learning", 2022; a scale for each row, taken
from the tensor itself, as torchao's float8 training has it.) Gradients are in e4m3 as well: with a scale of its own a
row needs no more range, and e5m2 has one bit less. A derivative of the rounding is taken for one.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.fp8_impl import MULTIPLE, Quantize, scaled_product
from mova_engine.ops.reference import quantize_rows_reference, up

# (a [m, k], b [n, k], bias [n] or None) -> a b^T + bias, both quantised in rows.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.product = product
        ctx.save_for_backward(x, weight)
        return product(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, of_x, of_weight, of_bias = ctx.needs_input_grad
        g = g.flatten(0, -2)
        dx = ctx.product(g, weight.t(), None).view(x.shape) if of_x else None
        dweight = ctx.product(g.t(), x.flatten(0, -2).t(), None) if of_weight else None
        return None, dx, dweight, g.sum(0) if of_bias else None


def _dequantised(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """A product of quantised numbers in float32 at least, which no rounding of an fp8 product is part of."""
    wide = up(a).dtype
    (values_a, scale_a), (values_b, scale_b) = (
        (values.to(wide), scale.to(wide)) for values, scale in map(quantize_rows_reference, (a, b))
    )
    product = (values_a @ values_b.t()) * scale_a * scale_b.t()
    return (product if bias is None else product + bias.to(wide)).to(a.dtype)


def fp8_trained_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`q(x) q(W)^T + b`, q being `quantize_rows`; gradients `q(g) q(W^T)^T` of x, `q(g^T) q(x^T)^T` of W, sums of b.

    x [b, s, i], weight [o, i], bias [o] or None, of any floating dtype -> [b, s, o] in it. Products in float32 at
    least: what a device with fp8 products computes, emulated.
    """
    return _Trained.apply(_dequantised, x, weight, bias)


def scaled(quantize: Quantize) -> Product:
    """A product by torch's fp8 product, rows quantised by `quantize`."""

    def product(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        (values_a, scale_a), (values_b, scale_b) = quantize(_whole(a)), quantize(_whole(b))
        return scaled_product(values_a, scale_a, values_b.t(), scale_b.squeeze(1), bias, a.dtype)

    return product


def _whole(x: Tensor) -> Tensor:
    """x [n, k] with adjacent rows, zeros at their ends up to a multiple of what the product takes: of the tokens that a
    weight's gradient sums over there may be any number.
    """
    missing = -x.shape[1] % MULTIPLE
    return F.pad(x, (0, missing)) if missing else x.contiguous()


def checked(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`fp8_trained_linear` by a product, its inputs looked at."""
    requirements.linear("fp8_trained_linear", x, weight, bias)
    requirements.same_dtype("fp8_trained_linear", (torch.bfloat16,), x=x, weight=weight, bias=bias)
    if any(size % MULTIPLE for size in weight.shape):
        raise MovaError(
            f"fp8_trained_linear: the weight's sizes must be multiples of {MULTIPLE}, got {list(weight.shape)}; "
            "keep this layer in bfloat16"
        )
    return _Trained.apply(product, x, weight, bias)


_BY_TORCH = scaled(quantize_rows_reference)


def scaled_mm(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`fp8_trained_linear` by torch's fp8 product, rows quantised by torch's own operations. bfloat16."""
    return checked(_BY_TORCH, x, weight, bias)


def scaled_mm_triton(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`fp8_trained_linear` by torch's fp8 product, rows quantised by one Triton kernel. bfloat16."""
    from mova_kernels.quantize_rows.triton import quantize_rows

    return checked(scaled(quantize_rows), x, weight, bias)
