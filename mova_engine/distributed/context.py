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

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.config.mesh import lengths_of
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.ring import ring_attention, shared_query_attention
from mova_engine.distributed.ulysses import Lengths, ulysses_attention
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

        def video_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
            if tokens is None:
                return ops.video_attention(q, k, v)
            lengths = lengths_of(tokens, self.size)
            return self.attention(ops.video_attention, kernels, lengths, lengths, q, k, v)

        def video_to_audio_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
            if tokens is None:
                return ops.video_to_audio_attention(q, k, v)
            return shared_query_attention(kernels, self.whole, q, k, v)

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

        local: the attention that is used where there is no ring. lengths, key_lengths: s and n of all ranks.
        """
        width = self.ulysses.size
        # The keys of a ring rank are those of all its Ulysses ranks.
        blocks = [sum(key_lengths[i : i + width]) for i in range(0, self.size, width)]
        own = slice(self.ring.rank * width, (self.ring.rank + 1) * width)

        def inner(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return local(q, k, v) if self.ring.size == 1 else ring_attention(kernels, self.ring, blocks, q, k, v)

        return ulysses_attention(inner, self.ulysses, lengths[own], q, k, v, key_lengths[own])


def attention_kernels(ops: OpTable) -> AttentionKernels:
    """The implementations in `ops` that ring and shared-query attention are made of."""
    return AttentionKernels(ops.attention_lse, ops.attention_backward, ops.merge_lse)
