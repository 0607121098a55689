"""Ulysses: attention over a sharded sequence by exchanging tokens for heads (Jacobs et al., 2023).

Each rank holds some tokens with all heads; during attention it holds all tokens with some heads. The number of tokens
may differ between ranks; nothing is padded. The two exchanges are operators, and each is the gradient of the other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group
from mova_engine.errors import MovaError
from mova_engine.ops.custom_ops import below_autograd, implement, named

# The number of tokens in each rank's shard, in order of ranks.
Lengths = Sequence[int]


def ulysses_attention(
    attention: Callable,
    group: Group,
    lengths: Lengths,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Lengths | None = None,
) -> Tensor:
    """`attention` for sharded sequences: q, k, v [b, s_rank, h, e] -> [b, s_rank, h, e].

    attention: a function of q, k, v that gets all tokens and h / group.size heads. lengths: s of all ranks.
    key_lengths: the same for k and v; None: as lengths. Raises MovaError if h is not a multiple of group.size, or if q
    and k do not have this rank's lengths.
    """
    if group.size == 1:
        return attention(q, k, v)
    heads, theirs = q.shape[2], lengths if key_lengths is None else key_lengths
    if heads % group.size:
        raise MovaError(f"{heads} heads cannot be divided among {group.size} Ulysses ranks; use ring attention")
    check_shards(q, k, lengths[group.rank], theirs[group.rank])
    place = (lengths, theirs, group.rank, group.name)
    out = attention(*torch.ops.mova.tokens_to_heads([q, k, v], *place))
    return torch.ops.mova.heads_to_tokens([out], *place)[0]


def check_shards(q: Tensor, k: Tensor, queries: int, keys: int) -> None:
    """Raise MovaError if q and k [b, s, h, e] do not have `queries` and `keys` tokens, those of this rank's shards."""
    if q.shape[1] != queries or k.shape[1] != keys:
        raise MovaError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys, but this rank's shards have {queries} and "
            f"{keys}"
        )


def _per_tensor(tensors: Sequence[Tensor], lengths: Lengths, key_lengths: Lengths) -> list[tuple[Tensor, Lengths]]:
    return [(x, key_lengths if i else lengths) for i, x in enumerate(tensors)]


def _tokens_to_heads(
    tensors: list[Tensor], lengths: Lengths, key_lengths: Lengths, rank: int, group: str
) -> list[Tensor]:
    """Each [b, s_rank, h, e] -> [b, s, h / p, e]."""
    # All exchanges are started before the first wait, so that packing overlaps with communication.
    started = [to_heads(x, named(group), n) for x, n in _per_tensor(tensors, lengths, key_lengths)]
    return [finish() for finish in started]


def _heads_to_tokens(
    tensors: list[Tensor], lengths: Lengths, key_lengths: Lengths, rank: int, group: str
) -> list[Tensor]:
    """Each [b, s, h / p, e] -> [b, s_rank, h, e]."""
    started = [to_tokens(x, named(group), n) for x, n in _per_tensor(tensors, lengths, key_lengths)]
    return [finish() for finish in started]


def _fake_tokens_to_heads(
    tensors: list[Tensor], lengths: Lengths, key_lengths: Lengths, rank: int, group: str
) -> list[Tensor]:
    pairs = _per_tensor(tensors, lengths, key_lengths)
    return [x.new_empty((x.shape[0], sum(n), x.shape[2] // len(n), x.shape[3])) for x, n in pairs]


def _fake_heads_to_tokens(
    tensors: list[Tensor], lengths: Lengths, key_lengths: Lengths, rank: int, group: str
) -> list[Tensor]:
    pairs = _per_tensor(tensors, lengths, key_lengths)
    return [x.new_empty((x.shape[0], n[rank], x.shape[2] * len(n), x.shape[3])) for x, n in pairs]


def _exchange(name: str, back: str) -> Callable[..., list[Tensor]]:
    """The differentiable form of the operator `name`, whose gradient is the operator `back`."""

    class Exchange(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, place: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
            ctx.place = place
            return tuple(below_autograd(name, list(tensors), *place))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return None, *getattr(torch.ops.mova, back).default(list(grads), *ctx.place)

    return lambda tensors, *place: list(Exchange.apply(place, *tensors))


implement("tokens_to_heads", _tokens_to_heads, _fake_tokens_to_heads, _exchange("tokens_to_heads", "heads_to_tokens"))
implement("heads_to_tokens", _heads_to_tokens, _fake_heads_to_tokens, _exchange("heads_to_tokens", "tokens_to_heads"))


def to_heads(x: Tensor, group: Group, lengths: Lengths) -> Callable[[], Tensor]:
    """Start exchanging x [b, s_rank, h, e] for [b, s, h / p, e] on p ranks; returns a function that waits for it."""
    b, s, h, e = x.shape
    share = h // group.size
    pieces = x.unflatten(2, (group.size, share)).permute(2, 0, 1, 3, 4).reshape(-1)
    each = [b * n * share * e for n in lengths]
    finish = group.all_to_all(pieces, [b * s * share * e] * group.size, each)

    def tokens() -> Tensor:
        parts = finish().split(each)
        return torch.cat([part.view(b, n, share, e) for part, n in zip(parts, lengths, strict=True)], 1)

    return tokens


def to_tokens(x: Tensor, group: Group, lengths: Lengths) -> Callable[[], Tensor]:
    """The reverse of `to_heads`: [b, s, h / p, e] -> [b, s_rank, h, e]; returns a function that waits for it."""
    b, _, share, e = x.shape
    own = lengths[group.rank]
    pieces = torch.cat([part.reshape(-1) for part in x.split(list(lengths), 1)])
    finish = group.all_to_all(pieces, [b * n * share * e for n in lengths], [b * own * share * e] * group.size)

    def heads() -> Tensor:
        return finish().view(group.size, b, own, share, e).permute(1, 2, 0, 3, 4).reshape(b, own, group.size * share, e)

    return heads
