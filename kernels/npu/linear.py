"""The feed-forward's first half."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`gelu(x W^T + b)` in the tanh form by `npu_gelu`; torch_npu's `fast_gelu` is another function."""
    return torch.ops.npu.npu_gelu(F.linear(x, weight, bias), approximate="tanh")
