"""Attention by PyTorch: scaled-dot-product attention (SDPA) with its backend left to torch or chosen, and the kernels
beneath it that also give, or take, the log-sum-exp.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.ops import requirements

_aten = torch.ops.aten
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
_NAMES = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: "unfused",
}


def adjacent(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors, copied where channels of the last axis are apart: flash kernels read on without looking."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def heads_first(*tensors: Tensor) -> tuple[Tensor, ...]:
    """[b, s, h, e] as [b, h, s, e], without a copy where channels are adjacent; and back."""
    return tuple(x.transpose(1, 2) for x in adjacent(*tensors))


def _flash_cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by torch's CPU flash kernel in the inputs' dtype."""
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*heads_first(q.detach(), k.detach(), v.detach()))
    return out.transpose(1, 2), lse


class _FlashCpu(torch.autograd.Function):
    """Attention by torch's CPU flash kernel, of which the backward computes in float32.

    In half precision that kernel adds up the gradients of its tiles in the inputs' dtype: in bfloat16 their error grows
    with the number of tokens (at 2048 it is 1.7 times that of a kernel which adds up in float32).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, lse = _flash_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return flash_cpu_backward(dout, *ctx.saved_tensors)


def _attend(q: Tensor, k: Tensor, v: Tensor, flash: bool = True) -> Tensor:
    """Attention of [b, s, h, e] by the kernel that torch chooses among those that are allowed; flash: it is one."""
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if gradient and flash and q.numel() and k.shape[1] and q.device.type == "cpu" and q.dtype in requirements.HALVES:
        return _FlashCpu.apply(q, k, v)
    q, k, v = heads_first(q, k, v)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` by F.scaled_dot_product_attention, which picks flash, cuDNN or memory-efficient kernels itself."""
    requirements.attention("attention", q, k, v)
    return _attend(q, k, v)


def _sdpa_by(kernel: SDPBackend, dtypes: tuple[torch.dtype, ...]) -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        requirements.attention("attention", q, k, v, dtypes)
        try:
            with sdpa_kernel(kernel):
                return _attend(q, k, v, flash=kernel is SDPBackend.FLASH_ATTENTION)
        except RuntimeError as error:
            # torch's words for "none that was allowed can serve".
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            shapes = f"{list(q.shape)} and {list(k.shape)} in {q.dtype}"
            raise MovaError(
                f"attention: torch has no {_NAMES[kernel]} kernel for {shapes} on {q.device}; "
                "the implementation 'sdpa' lets torch choose"
            ) from error

    attention.__doc__ = f"`attention` by SDPA's {_NAMES[kernel]} kernel and no other."
    return attention


def _availability(kernel: SDPBackend) -> Callable[[Backend], str | None]:
    def check(backend: Backend) -> str | None:
        absent = backend.unavailable()
        if absent is None:
            x = torch.zeros(1, 1, 8, 128, dtype=torch.bfloat16, device=backend.device())
            try:
                # torch says in warnings why a kernel is passed over; its error says the same in short.
                with warnings.catch_warnings(), sdpa_kernel(kernel):
                    warnings.simplefilter("ignore")
                    F.scaled_dot_product_attention(x, x, x)
            except RuntimeError:
                return f"torch {torch.__version__} has no {_NAMES[kernel]} attention for {backend.describe()}"
        return absent

    return check


sdpa_cudnn = _sdpa_by(SDPBackend.CUDNN_ATTENTION, requirements.HALVES)
sdpa_flash = _sdpa_by(SDPBackend.FLASH_ATTENTION, requirements.FLOATS)
sdpa_efficient = _sdpa_by(SDPBackend.EFFICIENT_ATTENTION, requirements.FLOATS)
sdpa_math = _sdpa_by(SDPBackend.MATH, requirements.FLOATS)
cudnn_check = _availability(SDPBackend.CUDNN_ATTENTION)
flash_check = _availability(SDPBackend.FLASH_ATTENTION)
efficient_check = _availability(SDPBackend.EFFICIENT_ATTENTION)


def no_keys(q: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a softmax over nothing."""
    b, s, h, _ = q.shape
    return torch.zeros_like(q), torch.full((b, h, s), -math.inf, device=q.device)


def no_gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros for (dq, dk, dv)."""
    return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)


def flash_cpu_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by torch's CPU flash kernel, in float32: in bf16 its exponentials are good to 1e-5 only."""
    requirements.attention("attention_lse", q, k, v)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    whole = (x.detach().float() for x in heads_first(q, k, v))
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(*whole)
    return out.transpose(1, 2).to(q.dtype), lse


# In bfloat16 a third of the time, and precise enough where parts are not merged by the log-sum-exp.
flash_cpu_lse.own = {sdpa: _flash_cpu}


def flash_cpu_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by torch's CPU flash kernel, with a global out and lse. In float32: see `_FlashCpu`."""
    requirements.attention_gradient("attention_backward", dout, q, k, v, out, lse)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    tensors = (x.float() for x in heads_first(dout, q, k, v, out))
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, lse.contiguous(), 0.0, False)
    dq, dk, dv = (x.to(q.dtype) for x in heads_first(*grads))
    return dq, dk, dv


def flash_cuda_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by torch's CUDA flash kernel; fp16 and bf16 only."""
    requirements.attention("attention_lse", q, k, v, requirements.HALVES)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    out, lse, *_ = _aten._scaled_dot_product_flash_attention(*heads_first(q.detach(), k.detach(), v.detach()))
    return out.transpose(1, 2), lse


def flash_cuda_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by torch's CUDA flash kernel; fp16 and bf16 only."""
    requirements.attention_gradient("attention_backward", dout, q, k, v, out, lse, requirements.HALVES)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    none = torch.zeros((), dtype=torch.int64)
    grads = _aten._scaled_dot_product_flash_attention_backward(
        *heads_first(dout, q, k, v, out), lse.contiguous(), None, None, q.shape[1], k.shape[1], 0.0, False, none, none
    )
    dq, dk, dv = heads_first(*grads)
    return dq, dk, dv


def cudnn_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by cuDNN; fp16 and bf16 only."""
    requirements.attention("attention_lse", q, k, v, requirements.HALVES)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    tensors = heads_first(q.detach(), k.detach(), v.detach())
    out, lse, *_ = _aten._scaled_dot_product_cudnn_attention(*tensors, None, True)
    # cuDNN's log-sum-exp has a last axis of one.
    return out.transpose(1, 2), lse.view(lse.shape[:3])


def cudnn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by cuDNN; fp16 and bf16 only."""
    requirements.attention_gradient("attention_backward", dout, q, k, v, out, lse, requirements.HALVES)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    # The state of a dropout that is not there.
    none = torch.zeros((), dtype=torch.int64, device=q.device)
    grads = _aten._scaled_dot_product_cudnn_attention_backward(
        *heads_first(dout, q, k, v, out),
        lse.contiguous().unsqueeze(-1),
        *(none, none),
        *(None, None, None),
        *(q.shape[1], k.shape[1]),
        *(0.0, False),
    )
    dq, dk, dv = heads_first(*grads)
    return dq, dk, dv


# The memory-efficient kernels keep rows of log-sum-exps of a multiple of this length.
_ALIGNED = 32


def efficient_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`attention_lse` by torch's memory-efficient CUDA kernel, which takes float32 too."""
    requirements.attention("attention_lse", q, k, v)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_keys(q)
    tensors = heads_first(q.detach(), k.detach(), v.detach())
    out, lse, *_ = _aten._scaled_dot_product_efficient_attention(*tensors, None, True)
    return out.transpose(1, 2), lse.narrow(-1, 0, q.shape[1])


def efficient_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`attention_backward` by torch's memory-efficient CUDA kernel, which takes float32 too."""
    requirements.attention_gradient("attention_backward", dout, q, k, v, out, lse)
    if k.shape[1] == 0 or q.numel() == 0:
        return no_gradients(q, k, v)
    # A row beyond the last has no weight: exp(score - inf) = 0.
    s = lse.shape[-1]
    rest = torch.full((*lse.shape[:2], -s % _ALIGNED), math.inf, device=lse.device)
    padded = torch.cat([lse, rest], -1)
    none = torch.zeros((), dtype=torch.int64)
    grads = _aten._scaled_dot_product_efficient_attention_backward(
        *heads_first(dout, q, k, v), None, *heads_first(out), padded, none, none, 0.0, [True, True, True, False]
    )
    dq, dk, dv = heads_first(*grads[:3])
    return dq, dk, dv
