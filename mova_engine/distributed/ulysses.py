"""Ulysses: attention over a sharded sequence by exchanging tokens for heads (Jacobs et al., 2023).

Each rank holds some tokens with all heads; for the attention itself it holds all tokens with some heads. Lengths may
differ between ranks: pieces of the exchange are as long as they are, and no token is made up.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group
from mova_engine.errors import MovaError
from mova_engine.ops.saved_outputs import save_or_reuse

# The lengths of all ranks' shards of the sequence at hand, in order of ranks.
Lengths = Callable[[], Sequence[int]]


def ulysses(attention: Callable, group: Group, lengths: Lengths, key_lengths: Lengths | None = None) -> Callable:
    """`attention` for sharded sequences: the same signature, of q, k, v [b, s_rank, h, e] -> [b, s_rank, h, e].

    attention: is given all tokens and h / group.size heads. key_lengths: of k's and v's shards where they differ.
    Raises MovaError where the ranks do not divide the heads.
    """
    if group.size == 1:
        return attention

    def ulysses_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads, own = q.shape[2], tuple(lengths())
        theirs = own if key_lengths is None else tuple(key_lengths())
        if heads % group.size:
            raise MovaError(f"{heads} heads cannot be divided among {group.size} Ulysses ranks; use ring attention")
        check_shards(q, k, own[group.rank], theirs[group.rank])
        gathered = _TokensToHeads.apply(group, own, theirs, q, k, v)
        return _HeadsToTokens.apply(group, own, attention(*gathered))

    return ulysses_attention


def check_shards(q: Tensor, k: Tensor, queries: int, keys: int) -> None:
    """Raise MovaError where q's and k's tokens are not as many as this rank's shards have."""
    if q.shape[1] != queries or k.shape[1] != keys:
        raise MovaError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys, but this rank's shards are of {queries} and "
            f"{keys}"
        )


class _TokensToHeads(torch.autograd.Function):
    """q, k, v [b, s_rank, h, e] -> [b, s, h / p, e]."""

    @staticmethod
    def forward(ctx, group, lengths, key_lengths, q, k, v):
        ctx.group, ctx.lengths = group, (lengths, key_lengths, key_lengths)

        def exchange() -> tuple[Tensor, ...]:
            # All begun before any is waited for: the next is packed while one is on its way.
            started = [to_heads(x, group, n) for x, n in zip((q, k, v), ctx.lengths, strict=True)]
            return tuple(finish() for finish in started)

        return save_or_reuse("exchange", exchange)

    @staticmethod
    def backward(ctx, *grads):
        started = [to_tokens(g, ctx.group, n) for g, n in zip(grads, ctx.lengths, strict=True)]
        return (None, None, None, *(finish() for finish in started))


class _HeadsToTokens(torch.autograd.Function):
    """out [b, s, h / p, e] -> [b, s_rank, h, e]."""

    @staticmethod
    def forward(ctx, group, lengths, out):
        ctx.group, ctx.lengths = group, lengths
        return save_or_reuse("return", lambda: (to_tokens(out, group, lengths)(),))[0]

    @staticmethod
    def backward(ctx, grad):
        return None, None, to_heads(grad, ctx.group, ctx.lengths)()


def to_heads(x: Tensor, group: Group, lengths: Sequence[int]) -> Callable[[], Tensor]:
    """Begin to exchange own tokens [b, s_rank, h, e] for own heads [b, s, h / p, e]; returns what waits for them."""
    b, s, h, e = x.shape
    share = h // group.size
    pieces = x.unflatten(2, (group.size, share)).permute(2, 0, 1, 3, 4).reshape(-1)
    each = [b * n * share * e for n in lengths]
    finish = group.all_to_all(pieces, [b * s * share * e] * group.size, each)

    def tokens() -> Tensor:
        parts = finish().split(each)
        return torch.cat([part.view(b, n, share, e) for part, n in zip(parts, lengths, strict=True)], 1)

    return tokens


def to_tokens(x: Tensor, group: Group, lengths: Sequence[int]) -> Callable[[], Tensor]:
    """The way back: own heads' [b, s, h / p, e] for own tokens' [b, s_rank, h, e]."""
    b, _, share, e = x.shape
    own = lengths[group.rank]
    pieces = torch.cat([part.reshape(-1) for part in x.split(list(lengths), 1)])
    finish = group.all_to_all(pieces, [b * n * share * e for n in lengths], [b * own * share * e] * group.size)

    def heads() -> Tensor:
        return finish().view(group.size, b, own, share, e).permute(1, 2, 0, 3, 4).reshape(b, own, group.size * share, e)

    return heads
