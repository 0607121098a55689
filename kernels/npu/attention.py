"""Attention by `npu_fusion_attention`, its log-sum-exp, its backward from global statistics, and the merge of parts.

q [b, s, h, e], k and v [b, n, h, e], which is the operator's layout BSND; float32, bfloat16 or float16, all the same.
The operator takes 1 to 256 heads of 1 to 768 channels and up to 1,048,576 tokens: beyond it ValueError.
"""

import math

import torch
from torch import Tensor

_LAYOUT = "BSND"
_HEADS, _HEAD_DIM, _TOKENS = 256, 768, 1 << 20
_SHARDS, _MERGED_HEAD_DIM = 16, 512
# The operator keeps the maximum and the sum of each row eight times.
_COPIES = 8


def _same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Under autocast all in its dtype: it does not know `npu::` operators."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _check(q: Tensor, k: Tensor) -> None:
    (_, s, h, e), n = q.shape, k.shape[1]
    if h > _HEADS or e > _HEAD_DIM or max(s, n) > _TOKENS:
        raise ValueError(
            f"npu_fusion_attention takes up to {_HEADS} heads of {_HEAD_DIM} channels and {_TOKENS} tokens, got "
            f"{h} of {e} and {max(s, n)}; the reference takes them"
        )


def _forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and each row's maximum and sum, [b, h, s, 8] in float32."""
    _check(q, k)
    scale = 1 / math.sqrt(q.shape[-1])
    return torch.ops.npu.npu_fusion_attention(q, k, v, q.shape[2], _LAYOUT, scale=scale)[:3]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q k^T / sqrt(e)) v`, [b, s, h, e]."""
    return _forward(*_same_dtype(q, k, v))[0]


def attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp [b, h, s] in float32: `max + log(sum)`. Forward only."""
    if k.shape[1] == 0:
        b, s, h, _ = q.shape
        return torch.zeros_like(q), torch.full((b, h, s), -math.inf, device=q.device)
    out, largest, total = _forward(*(x.detach() for x in _same_dtype(q, k, v)))
    return out, largest[..., 0] + torch.log(total[..., 0])


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) for one shard of keys, given the global out [b, s, h, e] and lse [b, h, s].

    `npu_fusion_attention_grad` computes `p = exp(scores - max) / sum`: with the log-sum-exp for the maximum and ones
    for the sum these are the shard's part of the global softmax.
    """
    if k.shape[1] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    _check(q, k)
    dout, q, k, v, out = _same_dtype(dout, q, k, v, out)
    largest = lse.float().unsqueeze(-1).expand(*lse.shape, _COPIES).contiguous()
    return torch.ops.npu.npu_fusion_attention_grad(
        q,
        k,
        v,
        dout,
        q.shape[2],
        _LAYOUT,
        softmax_max=largest,
        softmax_sum=torch.ones_like(largest),
        attention_in=out,
        scale_value=1 / math.sqrt(q.shape[-1]),
    )[:3]


def merge_lse(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """Combine attentions over disjoint sets of keys: outs [n, b, s, h, e], lses [n, b, h, s]. Forward only.

    By `npu_attention_update`, whose gradient would be None: at most 16 shards, e a multiple of 8 up to 512.
    """
    n, b, s, h, e = outs.shape
    if n > _SHARDS or e % 8 or e > _MERGED_HEAD_DIM:
        raise ValueError(
            f"npu_attention_update takes up to {_SHARDS} shards and head dims that are multiples of 8 up to "
            f"{_MERGED_HEAD_DIM}, got {n} shards of {e}; the reference takes them"
        )
    lses = lses.detach().float().transpose(-1, -2)
    empty = lses == -math.inf
    # What a shard without keys holds must not matter, not even if it is NaN. float32: older CANN takes nothing else.
    wide = outs.detach().float().masked_fill(empty.unsqueeze(-1), 0).contiguous()
    # The operator's rows are (sample, token, head). A finite number stands for -inf, whose difference is NaN.
    rows = lses.clamp_min(torch.finfo(torch.float32).min / 2).reshape(n, -1)
    out, lse = torch.ops.npu.npu_attention_update(list(rows), list(wide.view(n, -1, e)), 1)
    lse = lse.view(b, s, h).masked_fill(empty.all(0), -math.inf)
    return out.view(b, s, h, e).to(outs.dtype), lse.transpose(1, 2)
