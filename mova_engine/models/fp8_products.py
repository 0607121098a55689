"""Fp8 products of a trained linear layer, and how far they are off the products in the layer's own dtype."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mova_engine.ops import OpTable

# What is compared of a layer, in the order of its deviations.
COMPARED: tuple[str, ...] = ("output", "input's gradient", "weight's gradient")
# In place of a deviation: nothing was computed, or nothing but zeros.
NOT_MEASURED = -1.0


class Fp8Products:
    """How a linear layer with gradients is computed: in fp8, or, while `comparing`, in its own dtype with fp8 beside.

    deviations: float32 [3], on the layer's device, of `COMPARED` the largest since `forget`; None: nothing was
    compared.
    """

    def __init__(self) -> None:
        self.comparing = False
        self.deviations: Tensor | None = None

    def product(self, ops: OpTable, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x W^T + b`, x [.., i], weight [o, i], bias [o] or None -> [.., o]."""
        if self.comparing:
            return _Comparing.apply(self, ops.fp8_trained_linear, x, weight, bias)
        return ops.fp8_trained_linear(x, weight, bias)

    def forget(self) -> None:
        """Forget what was compared."""
        self.deviations = None

    def add(self, deviations: list[Tensor]) -> None:
        """Take the deviations of one more backward."""
        found = torch.stack(deviations)
        self.deviations = found if self.deviations is None else torch.maximum(self.deviations, found)


class _Comparing(torch.autograd.Function):
    """The layer in its own dtype. Its backward, which knows everything, computes the fp8 layer too and compares."""

    @staticmethod
    def forward(
        ctx: Any, products: Fp8Products, fp8: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.products, ctx.fp8 = products, fp8
        ctx.save_for_backward(x, weight)
        return torch.nn.functional.linear(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad[2:]
        rows = g.flatten(0, -2)
        dx = (rows @ weight).view(x.shape) if of_x else None
        dweight = rows.t() @ x.flatten(0, -2) if of_weight else None
        with torch.enable_grad():
            leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
            out = ctx.fp8(*leaves, None)
        fp8_dx, fp8_dweight = torch.autograd.grad(out, leaves, g)
        exact = torch.nn.functional.linear(x, weight)
        pairs = ((out.detach(), exact), (fp8_dx, dx), (fp8_dweight, dweight))
        ctx.products.add([_deviation(found, wanted) for found, wanted in pairs])
        return None, None, dx, dweight, rows.sum(0) if of_bias else None


def _deviation(found: Tensor, exact: Tensor | None) -> Tensor:
    """Root mean square of the difference over that of the exact result, float32, 0-dimensional: infinite where it is
    not finite, 0 where the layer needs no such result (None), `NOT_MEASURED` where both are zero.
    """
    if exact is None:
        return torch.zeros((), device=found.device)
    size = torch.linalg.vector_norm(exact, dtype=torch.float32)
    difference = torch.linalg.vector_norm(found.float() - exact.float())
    share = torch.nan_to_num(difference / size, nan=torch.inf, posinf=torch.inf)
    return torch.where((size == 0) & (difference == 0), NOT_MEASURED, share)
