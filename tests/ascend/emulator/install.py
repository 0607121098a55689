"""Which operators are emulated, and how: registered once, in place of the kernels that torch_npu brought."""

import warnings

import torch
from torch import Tensor

from ascend.emulator.kernel import Kernel, executed
from ascend.emulator.memory import CPU, DEVICE, current_device, on_cpu, on_device
from ascend.emulator.operators import MINDIE_OPERATORS, NPU_OPERATORS

# torch_npu's own host code does these without a kernel.
_NATIVE = {
    *("empty.memory_format", "empty_like", "empty_strided", "empty_with_format", "empty_with_swapped_memory"),
    *("unsafe_empty_with_format", "as_strided", "as_strided_", "view", "view_as_real", "view_as_complex"),
    *("_reshape_alias", "set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
    *("resize_", "resize_as_", "is_set_to", "record_stream", "_pin_memory", "is_pinned", "contiguous", "squeeze"),
    *("squeeze.dim", "unsqueeze", "unfold", "to_padded_tensor", "_copy_from_and_resize", "copy_memory_"),
}
_CPU_KEYS = ("CPU", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional", "CompositeImplicitAutograd")
# torch_npu computes these at the level of autograd, past the dispatcher: upstream's own composition takes over.
_DECOMPOSED = ("one_hot", "scaled_dot_product_attention")
_libraries: dict[str, torch.library.Library] = {}


def _copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    executed["aten::copy_"] += 1
    on_cpu(self).copy_(on_cpu(src))
    return self


def _copy_from(self: Tensor, dst: Tensor, non_blocking: bool = False) -> Tensor:
    on_cpu(dst).copy_(on_cpu(self))
    return dst


def _local_scalar_dense(self: Tensor) -> int | float | bool | complex:
    return torch.ops.aten._local_scalar_dense.default(on_cpu(self))


def _to_copy(
    self: Tensor, *, dtype=None, layout=None, device=None, pin_memory=None, non_blocking=False, memory_format=None
) -> Tensor:
    executed["aten::_to_copy"] += 1
    device = self.device if device is None else torch.device(device)
    if device.type == "meta":
        return torch.empty_strided(self.size(), self.stride(), dtype=dtype or self.dtype, device="meta")
    if device.type == DEVICE and device.index is None:
        device = current_device()
    layout_wish = {} if memory_format is None else {"memory_format": memory_format}
    copy = torch.ops.aten._to_copy.default(on_cpu(self), dtype=dtype, device=CPU, **layout_wish)
    return on_device(copy, device)


_DATA_MOVEMENT = {
    "aten::copy_": _copy_,
    "aten::_copy_from": _copy_from,
    "aten::_local_scalar_dense": _local_scalar_dense,
    "aten::_to_copy": _to_copy,
}


def _operator(name: str):
    namespace, _, rest = name.partition("::")
    base, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), base, None)
    return getattr(packet, overload or "default", None) if packet is not None else None


def _register(name: str, function, key: str = "PrivateUse1") -> None:
    namespace, _, rest = name.partition("::")
    if namespace not in _libraries:
        _libraries[namespace] = torch.library.Library(namespace, "IMPL")
    _libraries[namespace].impl(rest, function, key, allow_override=True)


def _plain(kernel: Kernel):
    # The registration wants a function, not an object.
    return lambda *args, **kwargs: kernel(*args, **kwargs)


def install() -> None:
    """Replace torch_npu's kernels: `npu::` operators by ours, `aten::` operators by PyTorch's CPU kernels.

    What is neither is left alone, and raises when it is called: there is no CANN behind it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Oo]verrid")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("PrivateUse1"):
            operator = _operator(name)
            if name in NPU_OPERATORS:
                _register(name, _plain(Kernel(name, operator, NPU_OPERATORS[name])))
            elif name in _DATA_MOVEMENT:
                _register(name, _DATA_MOVEMENT[name])
            elif _runs_on_cpu(name) and operator is not None:
                _register(name, _plain(Kernel(name, operator)))
        for name in _DECOMPOSED:
            decomposed = _decomposition(_operator(f"aten::{name}"))
            for key in ("AutogradPrivateUse1", "PrivateUse1"):
                _register(f"aten::{name}", decomposed, key)


def install_mindie() -> None:
    """The same for MindIE-SD's operators, which its import registers."""
    for name, function in MINDIE_OPERATORS.items():
        _register(name, _plain(Kernel(name, _operator(name), function)))


def _runs_on_cpu(name: str) -> bool:
    namespace, _, rest = name.partition("::")
    return (
        namespace == "aten"
        and rest not in _NATIVE
        and any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in _CPU_KEYS)
    )


def _decomposition(operator):
    return lambda *args, **kwargs: operator.decompose(*args, **kwargs)
