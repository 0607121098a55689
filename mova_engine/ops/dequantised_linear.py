"""A linear layer of a frozen quantised weight: dequantised for each product, never kept."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mova_engine.ops.half_products import add_product, linear, matmul
from mova_engine.ops.linear_impl import adapter_gradients

# (the stored tensors, dtype) -> the weight [o, i] in that dtype.
Dequantise = Callable[..., Tensor]
# (rows [n, i], bias, the stored tensors) -> [n, o].
Product = Callable[..., Tensor]


class _DequantisedLinear(torch.autograd.Function):
    """`x W^T + b + scale * (x A^T) B^T`; the backward dequantises again, so that what is kept of the weight are the
    stored numbers. A product of its own may quantise x: the derivative of that is taken for one.

    u = x A^T, [n, r], is kept, and x where there is an adapter. With h = g B: dx = g W + scale h A, dA = scale h^T x,
    dB = scale g^T u.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dequantise: Dequantise,
        product: Product | None,
        x: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scale: float,
        *stored: Any,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        if product is None:
            out = linear(rows, dequantise(*stored, x.dtype), bias)
        else:
            out = product(rows, bias, *stored)
        kept: tuple[Tensor, ...] = ()
        if lora_a is not None and lora_b is not None:
            u = matmul(rows, lora_a.t())
            add_product(out, u, lora_b.t(), scale)
            kept = (x, lora_a, lora_b, u)
        ctx.save_for_backward(*kept, *(s for s in stored if isinstance(s, Tensor)))
        ctx.stored = [None if isinstance(s, Tensor) else (s,) for s in stored]
        ctx.dequantise, ctx.scale, ctx.shape, ctx.kept = dequantise, scale, x.shape, len(kept)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        adapter, tensors = saved[: ctx.kept], iter(saved[ctx.kept :])
        g = g.flatten(0, -2)
        dx = da = db = None
        if ctx.needs_input_grad[2]:
            stored = [next(tensors) if other is None else other[0] for other in ctx.stored]
            dx = matmul(g, ctx.dequantise(*stored, g.dtype))
        if adapter:
            x, lora_a, lora_b, u = adapter
            dx, da, db = adapter_gradients(ctx, x.flatten(0, -2), g, lora_a, lora_b, u, dx)
        dx = None if dx is None else dx.view(ctx.shape)
        dbias = g.sum(0) if ctx.needs_input_grad[3] else None
        return None, None, dx, dbias, da, db, None, *(None for _ in ctx.stored)


def dequantised_linear(
    dequantise: Dequantise,
    stored: tuple[Any, ...],
    x: Tensor,
    bias: Tensor | None,
    lora_a: Tensor | None,
    lora_b: Tensor | None,
    scale: float,
    product: Product | None = None,
) -> Tensor:
    """`x W^T + b + scale * (x A^T) B^T`, W = dequantise(*stored, x's dtype) [o, i]. product: computes x W^T + b of rows
    in the forward, where not the dequantised weight does.

    Holds one dequantised weight while a product takes it. A gradient of a gradient raises RuntimeError.
    """
    return _DequantisedLinear.apply(dequantise, product, x, bias, lora_a, lora_b, scale, *stored)
