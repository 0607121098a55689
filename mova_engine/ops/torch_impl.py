"""Norms that PyTorch itself brings."""

import torch.nn.functional as F
from torch import Tensor

from mova_engine.ops import requirements


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """`rms_norm` by torch's fused kernel where the device has one."""
    requirements.norm("rms_norm", x, weight=weight)
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """`layer_norm` by torch's kernel: float32 within, rounded once."""
    requirements.norm("layer_norm", x, weight=weight, bias=bias)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), eps)
