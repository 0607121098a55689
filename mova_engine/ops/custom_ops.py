"""Operators of torch's dispatcher, `torch.ops.mova.*`: attention over what a table has bound, and exchanges.

What they are for: selective checkpointing chooses by operator which results a recomputed layer keeps, so what may be
kept must be an operator, functional and with its gradient; torch.compile and tensors without data take an operator by
its shapes, whatever computes it. The dispatcher carries tensors, numbers and strings alone. Hence kernels and process
groups (`Named`) are given by name.

    attention                 one process's own, by an AttentionKernels
    ring_attention            keys and values go round the ranks of a group
    shared_query_attention    queries that every rank has, to keys of which each has some
    tokens_to_heads           Ulysses' exchange of q, k or v, which is then on its way
    exchanged_attention       attention to them by chunks of heads, and the exchange of its output
    received                  waits for what is on its way
    bias_gelu_backward        the gradient of a `bias_gelu`, for code that is compiled

Autograd functions are registered for the dispatcher's autograd key: half the cost of a call that goes through
`torch.library.custom_op` (13 us against 25 us on one core).
"""

import itertools
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_ATTENTION = "Tensor q, Tensor k, Tensor v"
_GRADIENT = f"Tensor dout, {_ATTENTION}, Tensor out, Tensor lse"
# Tokens of the ranks of a Ulysses group, the ring in which keys and values go on, its ranks' tokens.
_SHARED = "int[] lengths, int[] key_lengths, int rank, str group, int[] blocks, str ring, str kernels"
_SCHEMAS = (
    f"attention({_ATTENTION}, str kernels) -> (Tensor, Tensor)",
    f"attention_backward({_GRADIENT}, str kernels) -> (Tensor, Tensor, Tensor)",
    f"ring_attention({_ATTENTION}, int[] key_lengths, str group, str kernels) -> (Tensor, Tensor)",
    f"ring_attention_backward({_GRADIENT}, int[] key_lengths, str group, str kernels) -> (Tensor, Tensor, Tensor)",
    f"shared_query_attention({_ATTENTION}, str group, str kernels) -> (Tensor, Tensor)",
    f"shared_query_attention_backward({_GRADIENT}, str group, str kernels) -> (Tensor, Tensor, Tensor)",
    "tokens_to_heads(Tensor x, int[] lengths, int rank, str group) -> Tensor[]",
    f"exchanged_attention({_ATTENTION}, Tensor[] chunks, {_SHARED}) -> Tensor[]",
    f"exchanged_attention_backward(Tensor dout, Tensor[] chunks, Tensor[] results, bool[] wanted, {_SHARED})"
    " -> Tensor[]",
    "received(Tensor x) -> Tensor",
    "bias_gelu_backward(Tensor grad, Tensor x, Tensor bias, str activation) -> (Tensor, Tensor)",
)
LIBRARY = torch.library.Library("mova", "FRAGMENT")
for _schema in _SCHEMAS:
    LIBRARY.define(_schema)

_named: "WeakValueDictionary[str, Named]" = WeakValueDictionary()
_numbers = itertools.count()


class Named:
    """What operators are given by its `name`; forgotten with its last owner."""

    def __init__(self) -> None:
        self.name = f"{type(self).__name__}-{next(_numbers)}"
        _named[self.name] = self


def named(name: str) -> Any:
    """The object of that name."""
    return _named[name]


class AttentionKernels(Named):
    """Implementations of `attention_lse`, `attention_backward` and, for rings, `merge_lse`.

    own: `attention_lse` where nothing is merged and the log-sum-exp is for the backward alone. An implementation may
    have a cheaper form for that, by the kernel of an implementation of `attention`: its attribute `own` maps the latter
    to the form, which is used where `attention` is bound to it, since that has been tried on this machine.
    """

    def __init__(
        self, lse: Callable, backward: Callable, merge: Callable | None = None, attention: Callable | None = None
    ) -> None:
        super().__init__()
        self.lse, self.backward, self.merge = lse, backward, merge
        self.own = getattr(lse, "own", {}).get(attention, lse)


def implement(name: str, kernel: Callable, fake: Callable, differentiable: Callable | None = None) -> None:
    """Give the operator `mova::name` its kernel, its results on tensors without data, and where it has a gradient the
    function that computes it under autograd (an autograd.Function's apply).
    """
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mova::{name}", fake, lib=LIBRARY)

    if differentiable is not None:

        def under_autograd(*args: Any) -> Any:
            if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
                return differentiable(*args)
            return below_autograd(name, *args)

        LIBRARY.impl(name, under_autograd, "Autograd")


def below_autograd(name: str, *args: Any) -> Any:
    """Call `mova::name` from within its autograd.Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return getattr(torch.ops.mova, name).default(*args)


def implement_attention(name: str, forward: Callable, backward: Callable) -> None:
    """An attention `mova::name` that gives (out [b, s, h, e], lse [b, h, s] float32), and its gradient
    `mova::name_backward` from both: forward(q, k, v, *rest), backward(dout, q, k, v, out, lse, *rest).
    """

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            out, lse = below_autograd(name, q, k, v, *rest)
            ctx.save_for_backward(q, k, v, out, lse)
            ctx.rest = rest
            ctx.mark_non_differentiable(lse)
            ctx.set_materialize_grads(False)
            return out, lse

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
            none = (None,) * len(ctx.rest)
            if dout is None:
                return (None, None, None, *none)
            grads = getattr(torch.ops.mova, f"{name}_backward").default(dout, *ctx.saved_tensors, *ctx.rest)
            return (*grads, *none)

    def gradients(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        return tuple(x.contiguous() for x in backward(dout, q, k, v, *rest))

    def results(*args: Any) -> tuple[Tensor, Tensor]:
        out, lse = forward(*args)
        return out.contiguous(), lse.contiguous()

    implement(name, results, fake_attention, Differentiable.apply)
    implement(f"{name}_backward", gradients, fake_attention_backward)


def fake_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    b, s, h, _ = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty((b, h, s), dtype=wide)


def fake_attention_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _attention(q: Tensor, k: Tensor, v: Tensor, kernels: str) -> tuple[Tensor, Tensor]:
    return named(kernels).own(q, k, v)


def _attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, kernels: str
) -> tuple[Tensor, Tensor, Tensor]:
    return named(kernels).backward(dout, q, k, v, out, lse)


implement_attention("attention", _attention, _attention_backward)


class Activation(Named):
    """tanh-GELU of a product and a bias by an implementation of `bias_gelu`, which adds the bias itself; one that does
    not do so in its kernel has an attribute `of_sum`, GELU alone, and the product is to add the bias.
    """

    def __init__(self, bias_gelu: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self._bias_gelu: Callable[[Tensor, Tensor], Tensor] = bias_gelu
        self._of_sum: Callable[[Tensor], Tensor] | None = getattr(bias_gelu, "of_sum", None)

    def bias_of_product(self, bias: Tensor) -> Tensor | None:
        """What the product adds: the bias, or nothing."""
        return None if self._of_sum is None else bias

    def function(self, product: Tensor, bias: Tensor) -> Tensor:
        """GELU's result of such a product."""
        return self._bias_gelu(product, bias) if self._of_sum is None else self._of_sum(product)

    def gradients(
        self, output: Tensor | GradientEdge, grad: Tensor, product: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of the product and the bias, leaves of which `function` has made the output."""
        outputs: Any = (output,)
        if self._of_sum is None:
            dproduct, dbias = torch.autograd.grad(outputs, (product, bias), grad)
            return dproduct, dbias
        (dproduct,) = torch.autograd.grad(outputs, (product,), grad)
        return dproduct, dproduct.flatten(0, -2).sum(0)


# The dispatcher's state outside of every kernel, where autograd takes part; a kernel runs below it.
_OUTSIDE = (torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set())


def _bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    with torch._C._ForceDispatchKeyGuard(*_OUTSIDE), torch.enable_grad():
        leaves = x.detach().requires_grad_(), bias.detach().requires_grad_()
        gelu = named(activation)
        dx, dbias = gelu.gradients(gelu.function(*leaves), grad, *leaves)
    return dx.contiguous(), dbias.contiguous()


def _fake_bias_gelu_backward(grad: Tensor, x: Tensor, bias: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


implement("bias_gelu_backward", _bias_gelu_backward, _fake_bias_gelu_backward)


def trained_attention(attention: Callable[..., Tensor], kernels: AttentionKernels) -> Callable[..., Tensor]:
    """The operator `mova::attention` where a gradient may be wanted, and plain `attention` elsewhere: the same
    computation whatever checkpointing keeps of it.
    """

    def video_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return torch.ops.mova.attention(q, k, v, kernels.name)[0]
        return attention(q, k, v)

    return video_attention
