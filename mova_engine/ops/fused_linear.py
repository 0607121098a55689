"""Memory-saving autograd functions (fused QKV, MLP): norm and GELU outputs are recomputed in the backward.

A norm's output and GELU's are passes over memory to compute, next to nothing beside the matrix products around them,
but kept they are a third of what a block holds for its backward. `shared_linear` takes several layers of one input,
computes that input again from what the norm keeps anyway, and adds up the input's gradient inside the products;
`feed_forward` does the same and keeps the product before GELU, not its result. (Recomputation by kind of operation:
Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022.)

They are forms of operators, not operators: bound with the table, from the `bias_gelu` that it has chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from mova_engine.ops.custom_ops import Activation
from mova_engine.ops.half_products import add_product, linear, matmul


class Recompute(NamedTuple):
    """How a tensor is computed once more: `function(*tensors, **options)`."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor | None, ...]
    options: Mapping[str, Any]


def shared_linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], again: Recompute | None = None
) -> tuple[Tensor, ...]:
    """`x W_i^T + b_i` for each layer i. x [b, s, d], weights [o_i, d], biases [o_i] or None -> [b, s, o_i] each.

    again: gives x in the backward; without it x itself is kept. A gradient of a gradient raises RuntimeError.
    """
    if not torch.is_grad_enabled():
        # The compiler takes the number of weights for one of them where no gradient is recorded.
        return _products(x, weights, biases)
    return _SharedLinear.apply(x, again, len(weights), *weights, *biases)


def feed_forward_of(bias_gelu: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The form `feed_forward`, with GELU by the given operator."""
    activation = Activation(bias_gelu)

    def feed_forward(
        x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, again: Recompute | None = None
    ) -> Tensor:
        """`gelu(x U^T + u) D^T + d`, tanh-GELU. x [b, s, i], up [h, i], up_bias [h], down [o, h], down_bias [o] ->
        [b, s, o]. Keeps the first product alone, [b, s, h], and x where `again` does not give it.
        """
        return _FeedForward.apply(x, again, activation, up, up_bias, down, down_bias)

    return feed_forward


def gelu_of_product_of(bias_gelu: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The form `gelu_of_product`, with GELU by the given operator."""
    activation = Activation(bias_gelu)

    def gelu_of_product(product: Callable[[Tensor | None], Tensor], bias: Tensor) -> Tensor:
        """`gelu(product + bias)`, tanh-GELU. product: called with the bias that it is to add, or None -> [b, s, h]."""
        return activation.function(product(activation.bias_of_product(bias)), bias)

    return gelu_of_product


def forms(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The forms that are made of a table's operators."""
    return {
        "feed_forward": feed_forward_of(functions["bias_gelu"]),
        "gelu_of_product": gelu_of_product_of(functions["bias_gelu"]),
    }


def _products(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2)


def _kept_input(x: Tensor, again: Recompute | None, needed: bool) -> tuple[Recompute | None, tuple[Tensor | None, ...]]:
    """(how a backward gets x, what has to be kept for that): kept, computed again, or not needed since no weight is
    trained. The first holds no tensor: what a function keeps outside of its saved tensors no checkpointing frees.
    """
    if not needed:
        return None, ()
    return (None, (x,)) if again is None else (again._replace(tensors=()), again.tensors)


def _input(again: Recompute | None, kept: Sequence[Tensor]) -> Tensor:
    return kept[0] if again is None else again.function(*(t.detach() for t in kept), **again.options)


class _SharedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, again: Recompute | None, count: int, *parameters: Any) -> tuple[Tensor, ...]:
        weights, biases = parameters[:count], parameters[count:]
        ctx.count = count
        ctx.again, kept = _kept_input(x, again, any(ctx.needs_input_grad[3 : 3 + count]))
        ctx.save_for_backward(*weights, *kept)
        return _products(x, weights, biases)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # asked for once: what checkpointing recomputes is handed out once
        weights, kept = saved[: ctx.count], saved[ctx.count :]
        wanted = ctx.needs_input_grad
        dx = None
        if wanted[0]:
            dx = matmul(_rows(grads[0]), weights[0])
            for grad, weight in zip(grads[1:], weights[1:], strict=True):
                add_product(dx, _rows(grad), weight)  # no pass over the sum
            dx = dx.view(*grads[0].shape[:-1], weights[0].shape[1])
        # Not looked at where no weight is trained.
        x: Any = _rows(_input(ctx.again, kept)) if any(wanted[3 : 3 + ctx.count]) else None
        per_layer = [(_rows(grad), *flags) for grad, flags in zip(grads, _pairs(wanted[3:], ctx.count), strict=True)]
        dweights = (matmul(grad.t(), x) if weight else None for grad, weight, _ in per_layer)
        dbiases = (grad.sum(0) if bias else None for grad, _, bias in per_layer)
        return dx, None, None, *dweights, *dbiases


def _pairs(flags: Sequence[bool], count: int) -> list[tuple[bool, bool]]:
    return list(zip(flags[:count], flags[count:], strict=True))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        again: Recompute | None,
        activation: Activation,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
    ) -> Tensor:
        product = linear(x, up, activation.bias_of_product(up_bias))
        ctx.activation = activation
        ctx.again, kept = _kept_input(x, again, ctx.needs_input_grad[3])
        ctx.save_for_backward(product, up, up_bias, down, *kept)
        return linear(activation.function(product, up_bias), down, down_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        product, up, up_bias, down, *kept = ctx.saved_tensors
        wanted, shape = ctx.needs_input_grad, product.shape
        through = _compiled_gelu if torch.compiler.is_compiling() else _gelu
        ddown, dproduct, dup_bias = through(ctx.activation, product, up_bias, _rows(grad), down, wanted[5])
        dproduct = _rows(dproduct)
        dx = matmul(dproduct, up).view(*shape[:-1], up.shape[1]) if wanted[0] else None
        dup = matmul(dproduct.t(), _rows(_input(ctx.again, kept))) if wanted[3] else None
        ddown_bias = _rows(grad).sum(0) if wanted[6] else None
        return dx, None, None, dup, dup_bias if wanted[4] else None, ddown, ddown_bias


def _gelu(
    activation: Activation, product: Tensor, bias: Tensor, grad: Tensor, down: Tensor, trained: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(gradient of the second layer's weight, if trained, of the product, of the first layer's bias); grad [n, o]."""
    with torch.enable_grad():
        product = product.detach().requires_grad_()
        bias = bias.detach().requires_grad_()
        hidden = activation.function(product, bias)
    ddown = matmul(grad.t(), _rows(hidden.detach())) if trained else None
    # Its values have served: what is left of it is the way back through GELU.
    edge, shape = get_gradient_edge(hidden), hidden.shape
    del hidden
    return ddown, *activation.gradients(edge, matmul(grad, down).view(shape), product, bias)


def _compiled_gelu(
    activation: Activation, product: Tensor, bias: Tensor, grad: Tensor, down: Tensor, trained: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The same by operators alone, which computes GELU twice: compilers know no edge of a graph of gradients."""
    ddown = matmul(grad.t(), _rows(activation.function(product, bias))) if trained else None
    dhidden = matmul(grad, down).view(product.shape)
    return ddown, *torch.ops.mova.bias_gelu_backward(dhidden, product, bias, activation.name)
