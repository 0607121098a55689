"""Tensors of the emulated device seen as CPU tensors, without a copy, and back."""

import torch
import torch_npu
from torch import Tensor

DEVICE = "npu"
CPU = torch.device("cpu")
_storage_at = torch._C._construct_storage_from_data_pointer


def current_device() -> torch.device:
    """The calling thread's device."""
    return torch.device(DEVICE, torch_npu._C._npu_getDevice())


def tensor_at(pointer: int, size: tuple, stride: tuple, dtype: torch.dtype) -> Tensor:
    """A CPU tensor over memory that somebody else owns; strides in elements, none negative."""
    if 0 in size:
        return torch.empty_strided(size, stride, dtype=dtype)
    extent = 1 + sum((s - 1) * step for s, step in zip(size, stride, strict=True))
    storage = _storage_at(pointer, CPU, extent * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, size, stride)


def on_cpu(x: Tensor) -> Tensor:
    """The same memory as a CPU tensor; CPU tensors as they are."""
    if x.device.type == "cpu":
        return x
    y = tensor_at(x.data_ptr(), tuple(x.size()), x.stride(), x.dtype)
    # Copies and matrix products see lazily conjugated and negated views.
    y = y.conj() if x.is_conj() else y
    return y._neg_view() if x.is_neg() else y


def on_device(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, with x's strides where they are dense; other devices' tensors as they are."""
    if x.device.type != "cpu":
        return x
    x = x.resolve_conj().resolve_neg()
    if not (x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense.default(x)):
        x = x.contiguous()
    out = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=device)
    if x.numel():
        on_cpu(out).copy_(x)
    return out
