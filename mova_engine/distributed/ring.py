"""Attention over sharded keys. Partial results are merged exactly by the log-sum-exp of each shard's scores.

`ring_attention` (Liu et al., 2023): queries, keys and values are sharded; keys and values are passed round the ring.
`shared_query_attention`: every rank has all queries and a shard of the keys, as in the bridge's attention from audio to
video tokens.

The backward does not differentiate through the merge: given the global output and log-sum-exp, the gradients of each
shard can be computed independently and exactly (`attention_backward`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group, accumulating_dtype
from mova_engine.errors import MovaError
from mova_engine.ops.custom_ops import AttentionKernels, implement_attention, named

# The number of tokens in each rank's shard, in order of ranks.
Lengths = Sequence[int]


def check_shards(q: Tensor, k: Tensor, queries: int, keys: int) -> None:
    """Raise MovaError if q and k [b, s, h, e] do not have `queries` and `keys` tokens, those of this rank's shards."""
    if q.shape[1] != queries or k.shape[1] != keys:
        raise MovaError(
            f"attention got {q.shape[1]} queries and {k.shape[1]} keys, but this rank's shards have {queries} and "
            f"{keys}"
        )


def ring_attention(
    kernels: AttentionKernels, group: Group, key_lengths: Lengths, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Attention of sharded sequences: q [b, s_rank, h, e], k, v [b, n_rank, h, e] -> [b, s_rank, h, e], for any number
    of heads. key_lengths: n of all ranks. Raises MovaError if k does not have this rank's n.

    The transfer of the next keys and values overlaps with the attention to the current ones.
    """
    check_shards(q, k, q.shape[1], key_lengths[group.rank])
    return torch.ops.mova.ring_attention(q, k, v, key_lengths, group.name, kernels.name)[0]


def ring_forward(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, group: str, kernels: str) -> tuple[Tensor, Tensor]:
    """The operator `mova::ring_attention`: (output, log-sum-exp) of q to the keys and values of all ranks. group,
    kernels: names.
    """
    ring: Group = named(group)
    kernel: AttentionKernels = named(kernels)
    wide = accumulating_dtype(q.dtype)
    assert kernel.merge is not None, "a ring is built with a merge"
    finish = _send_on(ring, lengths, 0, k, v)
    part, lse = kernel.lse(q, k, v)
    out = part.to(wide)
    for step in range(1, ring.size):
        k, v = finish()
        finish = _send_on(ring, lengths, step, k, v)
        part, part_lse = kernel.lse(q, k, v)
        out, lse = kernel.merge(torch.stack([out, part.to(wide)]), torch.stack([lse, part_lse]))
    return out.to(q.dtype), lse


def _ring_backward(*args: Any, **place: Any) -> tuple[Tensor, Tensor, Tensor]:
    return start_ring_backward(*args, **place)()


def start_ring_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lengths: Lengths, group: str, kernels: str
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Compute the gradients of `ring_forward`. Returns a function that waits for the last of them: (dq, dk, dv).

    Keys and values are passed round once more. The gradients of a shard's keys and values are passed round as well, as
    a partial sum that starts at the rank after the shard's owner and ends at the owner, which adds its own part.
    """
    ring: Group = named(group)
    kernel: AttentionKernels = named(kernels)
    size, rank, wide = ring.size, ring.rank, accumulating_dtype(q.dtype)
    # With two ranks the partial sum that is passed on has one term: its own dtype is exact.
    travelling = wide if size > 2 else q.dtype
    dout = dout.contiguous()
    finish = _send_on(ring, lengths, 0, k, v)
    part_q, *part = kernel.backward(dout, q, k, v, out, lse)
    dq, own = part_q.to(wide), [x.to(wide) for x in part]
    arriving: Callable[[], tuple[Tensor, Tensor]] | None = None
    for step in range(1, size):
        k, v = finish()
        finish = _send_on(ring, lengths, step, k, v)
        part_q, *part = kernel.backward(dout, q, k, v, out, lse)
        dq = dq + part_q
        sums = [x.to(travelling) for x in part]
        if arriving is not None:
            sums = [x + y for x, y in zip(sums, arriving(), strict=True)]
        arriving = _shift(ring, lengths, (rank - step) % size, sums)

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        last = own if arriving is None else [x + y for x, y in zip(own, arriving(), strict=True)]
        dk, dv = (x.to(q.dtype) for x in last)
        return dq.to(q.dtype), dk, dv

    return gradients


def _send_on(group: Group, lengths: Lengths, step: int, k: Tensor, v: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Start sending keys and values to the next rank. Returns a function that waits for those of the previous rank.

    In the last step nothing is sent.
    """
    if step == group.size - 1:
        return lambda: (k, v)
    return _shift(group, lengths, (group.rank - step) % group.size, (k, v))


def _shift(group: Group, lengths: Lengths, shard: int, pair: Sequence[Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
    """Start sending a pair of tensors [b, n, h, e] that belong to shard `shard`; returns a function that waits for the
    previous rank's pair, which belongs to shard `shard` - 1.
    """
    b, _, h, e = pair[0].shape
    tokens = lengths[(shard - 1) % group.size]
    finish = group.shift(torch.cat([x.reshape(-1) for x in pair]), 2 * b * tokens * h * e)

    def received() -> tuple[Tensor, Tensor]:
        first, second = finish().view(2, b, tokens, h, e).unbind(0)
        return first, second

    return received


implement_attention("ring_attention", ring_forward, _ring_backward)


def shared_query_attention(kernels: AttentionKernels, group: Group, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of replicated queries to sharded keys: q [b, s, h, e], equal on all ranks, k and v [b, n_rank, h, e]
    -> [b, s, h, e], equal on all ranks.

    Forward: all-reduces the maximum of the log-sum-exps, then the sum of the weighted outputs and weights in float32.
    Backward: each rank has a partial gradient of the output; one all-reduce sums them. q's gradient is partial again.
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
    """Merge the ranks' partial outputs [b, s, h, e] and log-sum-exps [b, h, s]."""
    most = group.all_reduce(lse.clone(), maximum=True)
    # A rank without keys has lse = -inf and therefore weight exp(-inf) = 0.
    weight = torch.exp(lse - most).transpose(1, 2).unsqueeze(-1)
    total = group.all_reduce(torch.cat([weight * out.to(weight.dtype), weight], -1))
    out, weight = total[..., :-1] / total[..., -1:], total[..., -1]
    return out.to(dtype), most + torch.log(weight).transpose(1, 2)


implement_attention("shared_query_attention", _shared_forward, _shared_backward)
