"""Linear layers beyond F.linear: GELU in the product's epilogue, a low-rank adapter that adds into the product, or
that is part of it."""

from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import Backend
from mova_engine.ops import requirements
from mova_engine.ops.half_products import add_product, linear, matmul

# Channels to a multiple of which an augmented product is filled up: 16 bytes of half precision, so that rows begin
# where tensor cores' loads want them.
_MULTIPLE = 8


def epilogue_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_gelu` in one cuBLASLt product whose epilogue adds the bias and applies the tanh form of GELU.

    For inference: nothing is kept of the sum before GELU, which a gradient needs and which would take a second product.
    """
    requirements.linear("linear_gelu", x, weight, bias)
    requirements.same_dtype("linear_gelu", requirements.FLOATS, x=x, weight=weight, bias=bias)
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.unflatten(0, x.shape[:-1])


def onednn_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`linear_gelu` in one oneDNN product with the tanh form of GELU behind it. For inference, as `epilogue_gelu`."""
    requirements.linear("linear_gelu", x, weight, bias)
    requirements.same_dtype("linear_gelu", requirements.FLOATS, x=x, weight=weight, bias=bias)
    if x.numel() == 0:
        return x.new_zeros(*x.shape[:-1], len(weight))
    return torch.ops.mkldnn._linear_pointwise(
        x.contiguous(), weight.contiguous(), bias.contiguous(), "gelu", [], "tanh"
    )


def onednn_check(backend: Backend) -> str | None:
    """oneDNN is part of most builds of torch, not of all."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return f"torch {torch.__version__} was built without oneDNN"
    return None


class _LoraLinear(torch.autograd.Function):
    """The adapter's products add into the base's (beta = 1), forward and backward: neither is an activation of its own.

    u = x A^T, [n, r], is kept. With h = g B: dx = g W + scale h A, dA = scale h^T x, dB = scale g^T u.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        u = matmul(rows, lora_a.t())
        out = linear(rows, weight, bias)
        add_product(out, u, lora_b.t(), scale)
        ctx.save_for_backward(x, weight, lora_a, lora_b, u)
        ctx.scale = scale
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, lora_b, u = ctx.saved_tensors
        rows, g = x.flatten(0, -2), g.flatten(0, -2)
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        dx, da, db = adapter_gradients(ctx, rows, g, lora_a, lora_b, u, matmul(g, weight) if wants_x else None)
        dw = matmul(g.t(), rows) if wants_weight else None
        return None if dx is None else dx.view(x.shape), dw, g.sum(0) if wants_bias else None, da, db, None


def adapter_gradients(
    ctx: Any, rows: Tensor, g: Tensor, lora_a: Tensor, lora_b: Tensor, u: Tensor, dx: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(dx with the adapter's part added in place, dA, dB) from rows [n, i], g [n, o] and u [n, r]."""
    h = matmul(g, lora_b)
    if dx is not None:
        add_product(dx, h, lora_a, ctx.scale)
    return dx, *_factor_gradients(ctx, rows, g, h, u)


def _factor_gradients(ctx: Any, rows: Tensor, g: Tensor, h: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(dA, dB) from rows [n, i], g [n, o], h = g B and u = x A^T [n, r]."""
    return matmul(h.t(), rows).mul_(ctx.scale), matmul(g.t(), u).mul_(ctx.scale)


class _AugmentedLora(torch.autograd.Function):
    """One product over i + r channels forward, `[x | scale u] [W | B]^T`, and one over o + r for the input's gradient,
    `[g | scale h] [W ; A]`, with u = x A^T and h = g B [n, r]. Each output is written, and rounded, once.

    What stands side by side is copied for as long as the product takes: x and W forward, g and W backward. The
    accumulating form instead reads and writes its output once more, o wide forward and i wide backward. So this one
    moves less forward where o > i, backward where o < i, the same in sum, plus the copies of W. Only x and u are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scale: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        u = matmul(rows, lora_a.t())
        out = linear(_beside(rows, u * scale, 1), _beside(weight, lora_b, 1), bias)
        ctx.save_for_backward(x, weight, lora_a, lora_b, u)
        ctx.scale = scale
        return out.view(*x.shape[:-1], len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lora_a, lora_b, u = ctx.saved_tensors
        rows, g = x.flatten(0, -2), g.flatten(0, -2)
        wants_x, wants_weight, wants_bias, *_ = ctx.needs_input_grad
        h, dx = matmul(g, lora_b), None
        if wants_x:
            dx = matmul(_beside(g, h * ctx.scale, 1), _beside(weight, lora_a, 0)).view(x.shape)
        dw = matmul(g.t(), rows) if wants_weight else None
        return dx, dw, g.sum(0) if wants_bias else None, *_factor_gradients(ctx, rows, g, h, u), None


def _beside(base: Tensor, factor: Tensor, dim: int) -> Tensor:
    """A matrix and the adapter's part of it joined along `dim`, and zeros up to the next multiple."""
    shape = list(factor.shape)
    shape[dim] = -(base.shape[dim] + factor.shape[dim]) % _MULTIPLE
    return torch.cat((base, factor, factor.new_zeros(shape)), dim)


def accumulating_lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, *, scale: float
) -> Tensor:
    """`lora_linear` without an activation of its own: its product adds into the base's."""
    _check_lora(x, weight, bias, lora_a, lora_b)
    return _LoraLinear.apply(x, weight, bias, lora_a, lora_b, scale)


def augmented_lora(
    x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, *, scale: float
) -> Tensor:
    """`lora_linear` as one product over the input's channels and the adapter's, `[x | scale u] [W | B]^T`, u = x A^T.

    W is copied beside B, never added to. See `_AugmentedLora` for what is copied.
    """
    _check_lora(x, weight, bias, lora_a, lora_b)
    return _AugmentedLora.apply(x, weight, bias, lora_a, lora_b, scale)


def _check_lora(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor) -> None:
    requirements.linear("lora_linear", x, weight, bias)
    requirements.adapter("lora_linear", x, weight.shape, lora_a, lora_b)
    requirements.same_dtype("lora_linear", requirements.FLOATS, x=x, weight=weight, bias=bias)
