"""Activations, optimizer step, and what torch_npu calls behind aten operators: casts, formats, matmul's backward."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ascend.emulator.operators.gradients import vjp, wide


def fast_gelu(x: Tensor) -> Tensor:
    """`x sigmoid(1.702 x)`: not the tanh form of GELU."""
    return (wide(x) * torch.sigmoid(1.702 * wide(x))).to(x.dtype)


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU."""
    return F.gelu(x, approximate=approximate)


def gelu_backward(grad: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU's gradient."""
    return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)


def matmul_backward(grad: Tensor, x: Tensor, other: Tensor, mask: list[bool]) -> tuple:
    """Gradients of a batched matrix product."""
    return vjp(torch.matmul, (x, other), grad, mask)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, copy=True)


def _unformatted(x: Tensor, *formats, **named) -> Tensor:
    # There are no private formats here: the same values in a new tensor.
    return x.clone()


OPERATORS = {
    "npu::fast_gelu": fast_gelu,
    "npu::npu_fast_gelu": fast_gelu,
    "npu::npu_fast_gelu_backward": lambda grad, x: vjp(fast_gelu, (x,), grad)[0],
    "npu::npu_gelu": gelu,
    "npu::npu_gelu_backward": gelu_backward,
    "aten::matmul_backward": matmul_backward,
    "npu::_npu_dtype_cast": _cast,
    "npu::_npu_dtype_cast_backward": _cast,
    "npu::npu_dtype_cast_backward": _cast,
    "npu::_npu_format_cast": _unformatted,
    "npu::npu_format_cast": _unformatted,
}
