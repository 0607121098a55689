"""Context parallelism: the video tokens of a clip shared among ranks, the audio tower computed by each of them.

    own tokens     video self-attention: Ulysses over as many ranks as divide the heads, ring above that (USP)
    audio -> video the bridge's keys and values are the audio's, which every rank has: nothing is exchanged
    video -> audio every rank attends from all audio tokens to its own video tokens, merged by log-sum-exp

The gradient rule. Each rank's loss is its share: the video's over own tokens divided by the count of all, the audio's
divided by the number of ranks. Then the gradient of every parameter, wherever it is, is a partial sum, and one sum over
the ranks gives what one process would have computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.config.mesh import lengths_of
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.ring import ring_attention, shared_query_attention
from mova_engine.distributed.ulysses import ulysses_attention
from mova_engine.models.context_parallel import Sharding
from mova_engine.ops import OpTable
from mova_engine.ops.custom_ops import AttentionKernels


class ContextParallel(Sharding):
    """One rank's part in a context-parallel group of `ring.size * ulysses.size` ranks, whose order is that of their
    tokens: rank = ring rank * Ulysses size + Ulysses rank.

    whole: the whole group. gather: outputs are gathered from all ranks, for sampling; otherwise others' tokens are zero
    in them, for training.
    """

    def __init__(self, whole: Group, ring: Group, ulysses: Group, *, gather: bool = False) -> None:
        self.whole, self.ring, self.ulysses, self.gather = whole, ring, ulysses, gather
        self.size, self.rank = whole.size, whole.rank

    @property
    def groups(self) -> tuple[Group, Group, Group]:
        """All groups, for counting what they send."""
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
        """`ops` with the roles of attention that this group shares. Where they are given no `tokens`, those of the
        whole clip, nothing is shared and they are what they were.
        """
        kernels = AttentionKernels(ops.attention_lse, ops.attention_backward, ops.merge_lse)

        def video_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
            if tokens is None:
                return ops.video_attention(q, k, v)
            lengths, width = lengths_of(tokens, self.size), self.ulysses.size
            first = self.ring.rank * width

            def inner(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                if self.ring.size == 1:
                    return ops.video_attention(q, k, v)
                # A ring rank's block has the tokens of all its Ulysses ranks.
                blocks = [sum(lengths[i : i + width]) for i in range(0, self.size, width)]
                return ring_attention(kernels, self.ring, blocks, q, k, v)

            return ulysses_attention(inner, self.ulysses, lengths[first : first + width], q, k, v)

        def video_to_audio_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int | None = None) -> Tensor:
            if tokens is None:
                return ops.video_to_audio_attention(q, k, v)
            return shared_query_attention(kernels, self.whole, q, k, v)

        return ops.replaced(video_attention=video_attention, video_to_audio_attention=video_to_audio_attention)
