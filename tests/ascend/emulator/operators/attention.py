"""Fused attention: forward, and a backward that uses the softmax statistics and the output that it is given."""

import torch
from torch import Tensor

from ascend.emulator.operators.gradients import wide

# The device keeps each row's maximum and sum eight times.
_COPIES = 8


def _heads_first(x: Tensor, layout: str) -> Tensor:
    return wide(x.transpose(1, 2) if layout == "BSND" else x)


def _back(x: Tensor, layout: str, like: Tensor) -> Tensor:
    return (x.transpose(1, 2) if layout == "BSND" else x).contiguous().to(like.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor, head_num: int, layout: str, others: dict) -> None:
    """What the device's own checks refuse, and what is not emulated."""
    if not query.dtype == key.dtype == value.dtype:
        raise RuntimeError("npu_fusion_attention: query, key and value must have the same dtype")
    if layout not in ("BSND", "BNSD"):
        raise RuntimeError(f"npu_fusion_attention: layout {layout} is not emulated")
    heads = 2 if layout == "BSND" else 1
    if query.shape[heads] != head_num or key.shape[heads] != head_num:
        raise RuntimeError(f"npu_fusion_attention: head_num is {head_num}, query has {query.shape[heads]} heads")
    used = [name for name, x in others.items() if x is not None]
    if used:
        raise RuntimeError(f"npu_fusion_attention: {', '.join(used)} not emulated")


def fusion_attention(
    query: Tensor, key: Tensor, value: Tensor, head_num: int, input_layout: str,
    pse=None, padding_mask=None, atten_mask=None, scale: float = 1.0, keep_prob: float = 1.0, *others, **named,
) -> tuple:  # fmt: skip
    """Attention, rows' maxima and sums [b, n, s, 8] in float32, an unused tensor, and three numbers for dropout."""
    dropped = keep_prob if keep_prob < 1 else None
    _check(query, key, value, head_num, input_layout, {"a mask": atten_mask, "pse": pse, "dropout": dropped})
    q, k, v = (_heads_first(x, input_layout) for x in (query, key, value))
    scores = q @ k.transpose(-1, -2) * scale
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    total = weights.sum(-1, keepdim=True)
    statistics = (x.float().expand(-1, -1, -1, _COPIES).contiguous() for x in (largest, total))
    return _back(weights / total @ v, input_layout, query), *statistics, query.new_empty(0), 0, 0, 0


def fusion_attention_grad(
    query: Tensor, key: Tensor, value: Tensor, dy: Tensor, head_num: int, input_layout: str, *,
    pse=None, padding_mask=None, atten_mask=None, softmax_max: Tensor, softmax_sum: Tensor, softmax_in=None,
    attention_in: Tensor, scale_value: float = 1.0, keep_prob: float = 1.0, **named,
) -> tuple:  # fmt: skip
    """dq, dk, dv with `p = exp(scores - max) / sum` and rowsum(dy * attention_in), whatever set of keys made them."""
    dropped = keep_prob if keep_prob < 1 else None
    _check(query, key, value, head_num, input_layout, {"a mask": atten_mask, "pse": pse, "dropout": dropped})
    q, k, v, g, out = (_heads_first(x, input_layout) for x in (query, key, value, dy, attention_in))
    p = torch.exp(q @ k.transpose(-1, -2) * scale_value - softmax_max[..., :1]) / softmax_sum[..., :1]
    ds = p * (g @ v.transpose(-1, -2) - (g * out).sum(-1, keepdim=True)) * scale_value
    grads = (ds @ k, ds.transpose(-1, -2) @ q, p.transpose(-1, -2) @ g)
    back = (_back(x, input_layout, like) for x, like in zip(grads, (query, key, value), strict=True))
    return *back, query.new_empty(0), torch.empty(0)


def attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    """Merge of attentions over disjoint keys: lse each [rows], local_out each [rows, e]."""
    if len({x.dtype for x in local_out}) > 1 or any(x.dtype != torch.float32 for x in lse):
        raise RuntimeError("npu_attention_update: lse must be float32, local_out all of one dtype")
    largest = torch.stack(lse).amax(0)
    total = largest + torch.log(torch.exp(torch.stack(lse) - largest).sum(0))
    out = sum(wide(x) * torch.exp(part - total).unsqueeze(-1) for x, part in zip(local_out, lse, strict=True))
    return out.to(local_out[0].dtype), total if update_type == 1 else total.new_empty(0)


OPERATORS = {
    "npu::npu_attention_update": attention_update,
    "npu::npu_fusion_attention": fusion_attention,
    "npu::npu_fusion_attention_grad": fusion_attention_grad,
}
