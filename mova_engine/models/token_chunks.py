"""A function of each token by itself, run on chunks of tokens: what it holds on its way is that of one chunk.

A feed-forward's hidden activations at 720p, 176,400 tokens of 13,824 channels, are 4.9 GB a tensor; of a chunk of 8,192
tokens 0.2 GB. (Feed-forward chunking: Kitaev et al., "Reformer", 2020; TiledMLP of Arctic Long Sequence Training.)
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

# From x [b, n, d] of some tokens, and which these are, to [b, n, o].
RowFunction = Callable[[Tensor, slice], Tensor]
# Tokens of a chunk are a multiple of this, so that the tiles of matrix units are full.
_MULTIPLE = 128


def in_token_chunks(function: RowFunction, x: Tensor, rows: int | None, parameters: Sequence[Tensor] = ()) -> Tensor:
    """`function(x, all tokens)` of x [b, s, d] -> [b, s, o], for about `rows` tokens at a time (None: for all at once).

    The function maps each token by itself and has no other differentiable inputs than x and `parameters`. Only x is
    kept for the backward, which computes each chunk again. Values and x's gradient are those of the function on all
    tokens as far as a row of a matrix product does not depend on how many others there are. Gradients of parameters are
    sums over chunks, in float32 at least, rounded once to the parameter's dtype. A gradient of a gradient raises
    RuntimeError.
    """
    if rows is None or x.shape[:-1].numel() <= rows:
        return function(x, slice(None))
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    if torch.is_grad_enabled() and (x.requires_grad or wanted):
        return _InTokenChunks.apply(x, function, rows, *wanted)
    return _forward(function, x, rows)


def _chunks(x: Tensor, rows: int) -> Iterator[slice]:
    """Of about equal length, at most `rows` tokens of all clips together where that is a multiple of `_MULTIPLE`."""
    clips, count = x.shape[:2]
    number = -(-clips * count // rows)
    step = -(-count // number)
    step = -(-step // _MULTIPLE) * _MULTIPLE if step > _MULTIPLE else step
    return (slice(begin, min(begin + step, count)) for begin in range(0, count, step))


def _part(x: Tensor, tokens: slice) -> Tensor:
    """Contiguous, as the whole is: of others torch makes a product first, rounds it, and then adds the bias."""
    return x[:, tokens].contiguous()


def _forward(function: RowFunction, x: Tensor, rows: int) -> Tensor:
    out = None
    for part in _chunks(x, rows):
        y = function(_part(x, part), part).detach()
        if out is None:
            out = y.new_empty(*x.shape[:2], *y.shape[2:])
        out[:, part] = y
    assert out is not None, "there are tokens"
    return out


class _InTokenChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: RowFunction, rows: int, *parameters: Tensor) -> Tensor:
        ctx.function, ctx.rows, ctx.parameters = function, rows, parameters
        ctx.save_for_backward(x)
        # With gradients on, as the backward computes it: the same operators give the same bits. What they keep goes at
        # once, and is not for the hooks of a checkpointed layer to see.
        with torch.enable_grad(), saved_tensors_hooks(_as_it_is, _as_it_is):
            return _forward(function, x.detach(), rows).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        sums: list[Tensor] = []
        for part in _chunks(x, ctx.rows):
            with torch.enable_grad():
                leaf = _part(x, part).detach().requires_grad_(dx is not None)
                y = ctx.function(leaf, part)
            leaves = (*((leaf,) if dx is not None else ()), *ctx.parameters)
            found = list(torch.autograd.grad(y, leaves, _part(grad, part)))
            del y
            if dx is not None:
                dx[:, part] = found.pop(0)
            if not sums:
                sums = [each.to(torch.promote_types(each.dtype, torch.float32), copy=True) for each in found]
            else:
                for total, each in zip(sums, found, strict=True):
                    total += each
        gradients = (total.to(each.dtype) for total, each in zip(sums, ctx.parameters, strict=True))
        return dx, None, None, *gradients


def _as_it_is(x: Tensor) -> Tensor:
    return x
