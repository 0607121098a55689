"""Context parallelism: the video tokens of a clip are sharded over ranks; every rank computes the whole audio tower.

    video self-attention   Ulysses over as many ranks as divide the heads, ring attention beyond that (USP)
    audio -> video bridge  keys and values are the audio tokens, which every rank has: no communication
    video -> audio bridge  every rank attends from all audio tokens to its own video tokens; the partial results are
                           merged by their log-sum-exp

Gradients: each rank's loss is its share, that is the video loss summed over its own tokens and divided by the number of
all tokens, plus the audio loss divided by the number of ranks. The gradient of every parameter is then a partial sum,
and one sum over the ranks gives the gradient that a single process would compute.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.config.mesh import lengths_of
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.ring import Lengths, check_shards, ring_attention, shared_query_attention
from mova_engine.distributed.ulysses import Sent, attend, attend_without_gradient, check_heads, send
from mova_engine.models.context_parallel import Sharding
from mova_engine.ops import OpTable
from mova_engine.ops.custom_ops import AttentionKernels


class ContextParallel(Sharding):
    """This rank's view of a context-parallel group of `ring.size * ulysses.size` ranks. Ranks are in the order of their
    tokens: rank = ring rank * Ulysses size + Ulysses rank.

    whole: the group of all these ranks. gather: `unshard` gathers the tokens of all ranks (for sampling); otherwise it
    fills the tokens of other ranks with zeros (for training).
    """

    def __init__(self, whole: Group, ring: Group, ulysses: Group, *, gather: bool = False) -> None:
        self.whole, self.ring, self.ulysses, self.gather = whole, ring, ulysses, gather
        self.size, self.rank = whole.size, whole.rank

    @property
    def groups(self) -> tuple[Group, Group, Group]:
        """All groups, for counting the bytes sent."""
        return self.whole, self.ring, self.ulysses

    def starts(self, total: int) -> tuple[int, ...]:
        lengths = lengths_of(total, self.size)
        return tuple(sum(lengths[:rank]) for rank in range(self.size))

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        lengths = lengths_of(x.shape[dim], self.size)
        return x.narrow(dim, sum(lengths[: self.rank]), lengths[self.rank])

    def unshard(self, own: Tensor, total: int) -> Tensor:
        lengths = lengths_of(total, self.size)
        if self.gather:
            b, _, d = own.shape
            sizes = [b * n * d for n in lengths]
            parts = self.whole.all_gather(own.reshape(-1), sizes).split(sizes)
            return torch.cat([part.view(b, n, d) for part, n in zip(parts, lengths, strict=True)], 1)
        before = sum(lengths[: self.rank])
        return F.pad(own, (0, 0, before, total - before - lengths[self.rank]))

    def summed(self, x: Tensor) -> Tensor:
        return self.whole.all_reduce(x.clone())

    def broadcast(self, x: Tensor) -> Tensor:
        return self.whole.broadcast(x)

    def operators(self, ops: OpTable) -> OpTable:
        """Return `ops` with `video_attention` and `video_to_audio_attention` distributed over this group.

        Their argument `tokens` is the number of video tokens of the whole clip. Without it (None) a call is not
        distributed and uses the implementation of `ops`.
        """
        kernels = attention_kernels(ops)

        def video_to_audio_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
            if tokens is None:
                return ops.video_to_audio_attention(q, k, v)
            return shared_query_attention(kernels, self.whole, q, k, v)

        video_attention = SharedVideoAttention(self, ops.video_attention, kernels)
        return ops.replaced(video_attention=video_attention, video_to_audio_attention=video_to_audio_attention)

    def attention(
        self,
        local: Callable[[Tensor, Tensor, Tensor], Tensor],
        kernels: AttentionKernels,
        lengths: Lengths,
        key_lengths: Lengths,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> Tensor:
        """Attention of sharded sequences by Ulysses and ring: q [b, s_rank, h, e], k, v [b, n_rank, h, e] -> as q.

        local: the attention that is used where there is neither a ring nor a gradient; kernels: elsewhere. lengths,
        key_lengths: s and n of all ranks. Raises MovaError if q and k do not have this rank's, or if the heads cannot
        be divided among the Ulysses ranks.
        """
        if self.ulysses.size == 1:
            return self._inner(local, kernels, key_lengths)(q, k, v)
        check_heads(q.shape[2], self.ulysses)
        check_shards(q, k, lengths[self.rank], key_lengths[self.rank])
        queries, keys = self.together(lengths), self.together(key_lengths)
        sent = [send(x, self.ulysses, n) for x, n in ((q, queries), (k, keys), (v, keys))]
        return self.attention_to_sent(local, kernels, lengths, key_lengths, *sent)

    def attention_to_sent(
        self,
        local: Callable[[Tensor, Tensor, Tensor], Tensor],
        kernels: AttentionKernels,
        lengths: Lengths,
        key_lengths: Lengths,
        q: Sent,
        k: Sent,
        v: Sent,
    ) -> Tensor:
        """`attention` to what has been sent to the Ulysses ranks, which are more than one. Empties q, k and v where no
        gradient is recorded.
        """
        queries, keys = self.together(lengths), self.together(key_lengths)
        if torch.is_grad_enabled():
            blocks = self._blocks(key_lengths)
            return attend(kernels, self.ring, blocks, self.ulysses, (queries, keys), q, k, v)
        inner = self._inner(local, kernels, key_lengths)
        return attend_without_gradient(inner, self.ulysses, queries, q, k, v)

    def _inner(
        self, local: Callable[[Tensor, Tensor, Tensor], Tensor], kernels: AttentionKernels, key_lengths: Lengths
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention to the tokens of the Ulysses ranks: in one rank, or round the ring."""
        if self.ring.size == 1:
            return local
        return partial(ring_attention, kernels, self.ring, self._blocks(key_lengths))

    def together(self, lengths: Lengths) -> Lengths:
        """Of the lengths of all ranks those of this rank's Ulysses group."""
        first = self.ring.rank * self.ulysses.size
        return lengths[first : first + self.ulysses.size]

    def _blocks(self, lengths: Lengths) -> Lengths:
        """The tokens of each ring rank: those of all its Ulysses ranks."""
        width = self.ulysses.size
        return [sum(lengths[i : i + width]) for i in range(0, self.size, width)]


class SharedVideoAttention:
    """The role `video_attention` over a context-parallel group (see `models.context_parallel.SharedAttention`).

    local: the role's implementation in one rank. kernels: what it is made of.
    """

    def __init__(
        self,
        context: ContextParallel,
        local: Callable[[Tensor, Tensor, Tensor], Tensor],
        kernels: AttentionKernels,
    ) -> None:
        self._context, self._local, self._kernels = context, local, kernels
        self.exchanges = context.ulysses.size > 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
        if tokens is None:
            return self._local(q, k, v)
        lengths = lengths_of(tokens, self._context.size)
        return self._context.attention(self._local, self._kernels, lengths, lengths, q, k, v)

    def send(self, x: Tensor, tokens: int) -> Sent:
        lengths = lengths_of(tokens, self._context.size)
        return send(x, self._context.ulysses, self._context.together(lengths))

    def finish(self, q: Sent, k: Sent, v: Sent, tokens: int) -> Tensor:
        lengths = lengths_of(tokens, self._context.size)
        return self._context.attention_to_sent(self._local, self._kernels, lengths, lengths, q, k, v)


def attention_kernels(ops: OpTable) -> AttentionKernels:
    """The implementations in `ops` that ring and shared-query attention are made of."""
    return AttentionKernels(ops.attention_lse, ops.attention_backward, ops.merge_lse, ops.attention)
