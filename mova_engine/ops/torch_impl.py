"""Implementations that PyTorch itself brings: fused RMSNorm and scaled-dot-product attention (SDPA)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mova_engine.backend import Backend

_aten = torch.ops.aten


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`rms_norm` by torch's fused kernel where the device has one."""
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by F.scaled_dot_product_attention, which picks flash, cuDNN or memory-efficient kernels itself."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def _nothing(q: Tensor, k: Tensor) -> bool:
    """Whether there is no query or no key, as on a rank whose shard is empty: torch's kernels divide by both."""
    return q.shape[1] == 0 or k.shape[1] == 0


def _no_keys(q: Tensor) -> tuple[Tensor, Tensor]:
    b, s, h, _ = q.shape
    lse = torch.full(
        (b, h, s), -math.inf, device=q.device, dtype=torch.float64 if q.dtype == torch.float64 else torch.float32
    )
    return torch.zeros_like(q), lse


def flash_cpu_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by torch's CPU flash kernel, in float32: in bf16 its exponentials are good to 1e-5 only."""
    if _nothing(q, k):
        return _no_keys(q)
    heads_first = (x.detach().transpose(1, 2).float() for x in (q, k, v))
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*heads_first)
    return out.transpose(1, 2).to(q.dtype), lse


def flash_cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by torch's CPU flash kernel, which accepts a global out and lse."""
    if _nothing(q, k):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    heads_first = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(*heads_first, lse, 0.0, False)
    return tuple(g.transpose(1, 2) for g in grads)


def flash_cuda_check(backend: Backend) -> str | None:
    """torch's CUDA flash kernels exist from Ampere on."""
    if backend.unavailable() is not None:
        return backend.unavailable()
    major, _ = torch.cuda.get_device_capability()
    return None if major >= 8 else f"torch's flash attention needs compute capability 8.0, this GPU has {major}.x"


def flash_cuda_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by torch's CUDA flash kernel; fp16 and bf16 only."""
    if _nothing(q, k):
        return _no_keys(q)
    heads_first = (x.detach().transpose(1, 2) for x in (q, k, v))
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(*heads_first)
    return out.transpose(1, 2), lse


def flash_cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by torch's CUDA flash kernel; fp16 and bf16 only."""
    if _nothing(q, k):
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    heads_first = (x.transpose(1, 2) for x in (dout, q, k, v, out))
    none = torch.zeros((), dtype=torch.int64)
    grads = _aten._scaled_dot_product_flash_attention_backward(
        *heads_first, lse, None, None, q.shape[1], k.shape[1], 0.0, False, none, none
    )
    return tuple(g.transpose(1, 2) for g in grads)
