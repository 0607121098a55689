"""Attention over shards of keys, exact through the log-sum-exp of each shard's scores.

`ring_attention` (Liu et al., 2023): queries, keys and values are all sharded; the keys go round.
`shared_query_attention`: every rank has all queries and some keys, as in the bridge's attention from audio to video
tokens.

The backward does not differentiate through the merge of partial results: with the global output and log-sum-exp each
shard's gradients follow alone (`attention_backward`), and they are exact.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group, accumulating_dtype
from mova_engine.distributed.ulysses import Lengths, check_shards
from mova_engine.ops.custom_ops import AttentionKernels, implement_attention, named


def ring_attention(
    kernels: AttentionKernels, group: Group, key_lengths: Lengths, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Attention of sharded sequences: q [b, s_rank, h, e], k, v [b, n_rank, h, e] -> [b, s_rank, h, e], for any number
    of heads. key_lengths: n of all ranks.

    The next keys and values are on their way while the present ones are used.
    """
    check_shards(q, k, q.shape[1], key_lengths[group.rank])
    return torch.ops.mova.ring_attention(q, k, v, key_lengths, group.name, kernels.name)[0]


def _ring_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, group: str, kernels: str) -> tuple[Tensor, Tensor]:
    group, kernels, wide = named(group), named(kernels), accumulating_dtype(q.dtype)
    out = lse = None
    for step in range(group.size):
        coming = _send_on(group, lengths, step, k, v)
        part, part_lse = kernels.lse(q, k, v)
        if out is None:
            out, lse = part.to(wide), part_lse
        else:
            out, lse = kernels.merge(torch.stack([out, part.to(wide)]), torch.stack([lse, part_lse]))
        k, v = coming()
    return out.to(q.dtype), lse


def _ring_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lengths: Lengths, group: str, kernels: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values go round once more. The gradients of a shard's keys are summed on their way, from the rank after
    its owner round to the owner, who adds its own part.
    """
    group, attention_backward = named(group), named(kernels).backward
    size, rank, wide = group.size, group.rank, accumulating_dtype(q.dtype)
    # With two ranks a travelling sum has one term, and rounding it as that term was rounded loses nothing.
    travelling = wide if size > 2 else q.dtype
    dout = dout.contiguous()
    dq = own = None
    arriving = None
    for step in range(size):
        coming = _send_on(group, lengths, step, k, v)
        part_q, *part = attention_backward(dout, q, k, v, out, lse)
        dq = part_q.to(wide) if dq is None else dq + part_q
        if step == 0:
            own = [x.to(wide) for x in part]
        else:
            sums = [x.to(travelling) for x in part]
            if arriving is not None:
                sums = [x + y for x, y in zip(sums, arriving(), strict=True)]
            arriving = _shift(group, lengths, (rank - step) % size, sums)
        k, v = coming()
    if arriving is not None:
        own = [x + y for x, y in zip(own, arriving(), strict=True)]
    return dq.to(q.dtype), *(x.to(q.dtype) for x in own)


def _send_on(group: Group, lengths: Lengths, step: int, k: Tensor, v: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Begin to pass keys and values to the next rank; after the last step everyone keeps what it has."""
    if step == group.size - 1:
        return lambda: (k, v)
    return _shift(group, lengths, (group.rank - step) % group.size, (k, v))


def _shift(group: Group, lengths: Lengths, shard: int, pair: Sequence[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Pass a pair of tensors about rank `shard`'s tokens on; what comes is about those of the rank before it."""
    b, _, h, e = pair[0].shape
    coming = lengths[(shard - 1) % group.size]
    finish = group.shift(torch.cat([x.reshape(-1) for x in pair]), 2 * b * coming * h * e)
    return lambda: tuple(finish().view(2, b, coming, h, e).unbind(0))


implement_attention("ring_attention", _ring_forward, _ring_backward)


def shared_query_attention(kernels: AttentionKernels, group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of queries that every rank has to keys of which each has a shard: q [b, s, h, e] the same everywhere, k
    and v [b, n_rank, h, e] -> [b, s, h, e], the same everywhere.

    Forward: one maximum of the log-sum-exps and one float32 sum of weighted outputs and weights over the ranks.
    Backward: the output's gradient is a share on each rank, and one sum makes it whole; q's gradient is a share again.
    """
    return torch.ops.mova.shared_query_attention(q, k, v, group.name, kernels.name)[0]


def _shared_forward(q: Tensor, k: Tensor, v: Tensor, group: str, kernels: str) -> tuple[Tensor, Tensor]:
    return _merged(named(group), q.dtype, *named(kernels).lse(q, k, v))


def _shared_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, group: str, kernels: str
) -> tuple[Tensor, Tensor, Tensor]:
    whole = named(group).all_reduce(dout.to(accumulating_dtype(q.dtype), copy=True)).to(q.dtype)
    return named(kernels).backward(whole, q, k, v, out, lse)


def _merged(group: Group, dtype: torch.dtype, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The ranks' partial outputs [b, s, h, e] and log-sum-exps [b, h, s] as one."""
    most = group.all_reduce(lse.clone(), maximum=True)
    # exp(-inf) = 0: a rank without keys has no weight.
    weight = torch.exp(lse - most).transpose(1, 2).unsqueeze(-1)
    total = group.all_reduce(torch.cat([weight * out.to(weight.dtype), weight], -1))
    out, weight = total[..., :-1] / total[..., -1:], total[..., -1]
    return out.to(dtype), most + torch.log(weight).transpose(1, 2)


implement_attention("shared_query_attention", _shared_forward, _shared_backward)
