"""Split-key attention for few queries and many keys, as from audio to video tokens: 403 queries, 43,120 to 176,400
keys.

A kernel that gives each tile of queries to one program leaves most of a large GPU idle. So the keys are cut into
chunks, which are laid into the batch of `attention_lse`, and the parts are merged by their log-sum-exps ("flash
decoding", Dao et al., 2023). The gradient is one `attention_backward` over all keys with the merged out and lse:
kernels of the backward share out the keys as it is, and a gradient taken through the merge would be wrong.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mova_engine.ops import attention_impl, requirements
from mova_engine.ops.reference import merge_lse_reference

# Split where there are so many keys for each query, into at most so many chunks of at least so many keys.
RATIO, CHUNKS, LEAST = 16, 16, 1024

Lse = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
Backward = Callable[..., tuple[Tensor, Tensor, Tensor]]


def chunks_for(queries: int, keys: int) -> int:
    """Into how many chunks the keys are cut; 1: not at all."""
    return 1 if keys < RATIO * queries else max(1, min(CHUNKS, keys // LEAST))


def merged_attention(lse: Lse, q: Tensor, k: Tensor, v: Tensor, chunks: int) -> tuple[Tensor, Tensor]:
    """(out [b, s, h, e], lse [b, h, s]) from `chunks` equal parts of the keys and what is left over."""
    b, n = k.shape[:2]
    size = n // chunks
    q, k, v = q.detach(), k.detach(), v.detach()
    folded = (x[:, : chunks * size].unflatten(1, (chunks, size)).flatten(0, 1) for x in (k, v))
    outs, lses = lse(q.unsqueeze(1).expand(-1, chunks, -1, -1, -1).flatten(0, 1), *folded)
    parts = [(outs.unflatten(0, (b, chunks)).transpose(0, 1), lses.unflatten(0, (b, chunks)).transpose(0, 1))]
    if n > chunks * size:
        rest = lse(q, k[:, chunks * size :], v[:, chunks * size :])
        parts.append((rest[0].unsqueeze(0), rest[1].unsqueeze(0)))
    return merge_lse_reference(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


class _SplitKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lse: Lse, backward: Backward, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = merged_attention(lse, q, k, v, chunks_for(q.shape[1], k.shape[1]))
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.gradients = backward
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.gradients(dout, *ctx.saved_tensors)


def split_keys(otherwise: attention_impl.Attention, lse: Lse, backward: Backward) -> attention_impl.Attention:
    """An `attention` that takes the split path where queries are few, and `otherwise` elsewhere."""

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        requirements.attention("attention", q, k, v)
        if q.numel() == 0 or chunks_for(q.shape[1], k.shape[1]) == 1:
            return otherwise(q, k, v)
        return _SplitKeys.apply(lse, backward, q, k, v)

    return attention


cpu = split_keys(attention_impl.sdpa, attention_impl.flash_cpu_lse, attention_impl.flash_cpu_backward)
cuda = split_keys(attention_impl.sdpa, attention_impl.flash_cuda_lse, attention_impl.flash_cuda_backward)
