"""A linear layer of a frozen quantised weight: dequantised for each product, never kept."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.ops.linear_impl import adapter_gradients

# (the stored tensors, dtype) -> the weight [o, i] in that dtype.
Dequantise = Callable[..., Tensor]


class _DequantisedLinear(torch.autograd.Function):
    """`f(x) W^T + b + scale * (x A^T) B^T`; the backward dequantises again, so that what is kept of the weight are the
    stored numbers. f: None, or what quantisation of inputs does to them; its derivative is taken for one.

    u = x A^T, [n, r], is kept, and x where there is an adapter. With h = g B: dx = g W + scale h A, dA = scale h^T x,
    dB = scale g^T u.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dequantise: Dequantise,
        of_input: Callable[[Tensor], Tensor] | None,
        x: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scale: float,
        *stored: Any,
    ) -> Tensor:
        rows = x.flatten(0, -2)
        given = rows if of_input is None else of_input(rows)
        out = F.linear(given, dequantise(*stored, x.dtype), bias)
        kept: tuple[Tensor, ...] = ()
        if lora_a is not None and lora_b is not None:
            u = rows @ lora_a.t()
            out.addmm_(u, lora_b.t(), alpha=scale)
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
            dx = g @ ctx.dequantise(*stored, g.dtype)
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
    of_input: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """`f(x) W^T + b + scale * (x A^T) B^T`, W = dequantise(*stored, x's dtype) [o, i], f = of_input or nothing.

    Holds one dequantised weight while a product takes it. A gradient of a gradient raises RuntimeError.
    """
    return _DequantisedLinear.apply(dequantise, of_input, x, bias, lora_a, lora_b, scale, *stored)
