"""Fp8 products of a trained linear layer, and how far they are off the products in the layer's own dtype."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from mova_engine.ops import OpTable
from mova_engine.ops.row_chunks import product_chunks

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
        of_x, _, of_bias = ctx.needs_input_grad[2:]
        inputs, rows = x.detach().flatten(0, -2), g.flatten(0, -2)
        leaves = inputs.requires_grad_(of_x), weight.detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.fp8(*leaves, None)
        # As little as can be is held beside what the layer holds without comparison: the output goes when it has been
        # compared, and what it is compared with is there a few rows at a time.
        edge, inputs, weight = get_gradient_edge(out), inputs.detach(), weight.detach()
        found = [_deviation(out.detach(), lambda part: inputs[part] @ weight.t())]
        del out
        *fp8_dx, fp8_dweight = torch.autograd.grad((edge,), leaves if of_x else leaves[1:], (rows,))
        dx, dweight = rows @ weight if of_x else None, rows.t() @ inputs
        # A gradient that the layer does not need cannot be off.
        found.append(torch.zeros_like(found[0]) if dx is None else _deviation(fp8_dx[0], dx.__getitem__))
        found.append(_deviation(fp8_dweight, dweight.__getitem__))
        ctx.products.add(found)
        return None, None, None if dx is None else dx.view(x.shape), dweight, rows.sum(0) if of_bias else None


def _deviation(found: Tensor, exact: Callable[[slice], Tensor]) -> Tensor:
    """Root mean square of the difference over that of the exact result, float32, 0-dimensional: infinite where it is
    not finite, `NOT_MEASURED` where both are zero. found [n, k]; exact: gives some of its rows.
    """
    sums = torch.zeros(2, device=found.device)
    for part in product_chunks(*found.shape):
        rows = exact(part).float()
        sums += torch.stack([(found[part].float() - rows).square().sum(), rows.square().sum()])
    difference, size = sums.sqrt().unbind()
    share = torch.nan_to_num(difference / size, nan=torch.inf, posinf=torch.inf)
    return torch.where((size == 0) & (difference == 0), NOT_MEASURED, share)
