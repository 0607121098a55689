"""A device that stands in for an accelerator: tensors of a device type of their own, in the host's memory.

What runs on a CPU alone cannot tell a tensor of the device from one of the host. Here they differ as they do on a GPU:
an operator that is given both refuses, a collective library finds its own or not, a generator belongs to one of them.
Every operator is computed by the CPU's, on the same memory, so that results are the CPU's to the last bit. A storage
that is given up (as FSDP does with gathered weights) is filled with NaN. Streams do nothing: there is no asynchrony.

`install()` gives torch the device, for good: in processes of their own. It uses torch's interface for devices written
in Python, which is an experimental one.
"""

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

import mova_engine.backend
from mova_engine.backend.cpu import CpuBackend
from mova_engine.ops import machine

NAME = "standin"
CPU = torch.device("cpu")
_BY_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_set = torch.ops.aten.set_.source_Storage_storage_offset
# Operators for which PyTorch itself lets CPU tensors meet a device's.
_MIXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::repeat_interleave"}
# How often each operator ran on the device in this process.
executed: collections.Counter[str] = collections.Counter()
_pinned: set[int] = set()
_kept: list[Any] = []


class StandinBackend(CpuBackend):
    """The engine's side of the device."""

    name = NAME
    collectives = "guard"
    changes_timeouts = False

    def device(self, index: int = 0) -> torch.device:
        return torch.device(NAME, 0)


class _Stream:
    """A stream, or an event, of a device that has done everything by the time it is asked."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def _nothing(self, *args: object) -> None:
        pass

    def record(self, *args: object) -> "_Stream":
        return self

    wait = wait_event = wait_stream = synchronize = __enter__ = __exit__ = _nothing
    record_event = record


class _Module:
    """`torch.standin`: what FSDP and autograd look for."""

    Stream = Event = _Stream

    @staticmethod
    def _yes() -> bool:
        return True

    @staticmethod
    def _nothing(*args: object, **kwargs: object) -> None:
        pass

    is_initialized = is_available = _yes
    set_device = synchronize = manual_seed = manual_seed_all = set_rng_state = _nothing

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def current_stream(self, device: object = None) -> _Stream:
        return _Stream()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(8, dtype=torch.uint8)

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        yield


def on_cpu(x: Tensor) -> Tensor:
    """The same memory as a CPU tensor; CPU tensors as they are."""
    if x.device.type != NAME:
        return x
    y = torch.empty(0, dtype=x.dtype).set_(_moved(x, CPU), x.storage_offset(), x.size(), x.stride())
    y = y.conj() if x.is_conj() else y
    return y._neg_view() if x.is_neg() else y


def on_device(x: Tensor) -> Tensor:
    """The same memory as a tensor of the device; its tensors as they are."""
    if x.device.type == NAME:
        return x
    x = x.resolve_conj().resolve_neg()
    shell = torch._C._acc.create_empty_tensor((0,), x.dtype)
    place = torch.device(NAME, 0)
    return _set.redispatch(_BY_CPU, shell, _moved(x, place), x.storage_offset(), x.size(), x.stride())


def _moved(x: Tensor, device: torch.device) -> torch.UntypedStorage:
    """x's storage as one of the device, which keeps x's alive."""
    owner = x.untyped_storage()
    storage = torch._C._construct_storage_from_data_pointer(owner.data_ptr(), device, owner.nbytes())
    storage._owner = owner
    return storage


class _Plan:
    """What an operator's schema says of its arguments and results."""

    def __init__(self, operator: Any) -> None:
        schema = operator._schema
        self.names = [a.name for a in schema.arguments]
        written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        # `out=` tensors, which are resized where they are empty.
        self.out = {a.name for a in written if a.kwarg_only}
        owner = {symbol: a.name for a in written for symbol in a.alias_info.before_set}
        # For each result the argument that it is, or None for a new tensor.
        self.results = [
            next((owner[s] for s in r.alias_info.before_set if s in owner), None) if r.alias_info else None
            for r in schema.returns
        ]
        # Views are made by what makes the CPU's: it looks at sizes and strides alone.
        views = (r.alias_info for r in schema.returns)
        self.view = schema.name == "aten::set_" or any(view and not view.is_write for view in views)


_plans: dict[Any, _Plan] = {}


def _kernel(operator: Any, *args: Any, **kwargs: Any) -> Any:
    """Every operator of the device."""
    name = operator._schema.name
    executed[name] += 1
    plan = _plans.get(operator) or _plans.setdefault(operator, _Plan(operator))
    if plan.view:
        return operator.redispatch(_BY_CPU, *args, **kwargs)
    if name in _SPECIAL:
        return _SPECIAL[name](*args, **kwargs)
    return _Call(name, plan, args, kwargs).run(operator)


class _Call:
    """One call, with its arguments on the CPU."""

    def __init__(self, name: str, plan: _Plan, args: tuple, kwargs: dict[str, Any]) -> None:
        self.name, self.plan, self.given = name, plan, dict(zip(plan.names, args, strict=False)) | kwargs
        self.of_device = self.of_host = False
        self.resized: list[tuple[Tensor, Tensor]] = []
        self.args = [self._convert(key, value) for key, value in zip(plan.names, args, strict=False)]
        self.kwargs = {key: self._convert(key, value) for key, value in kwargs.items()}
        if self.of_device and self.of_host and name not in _MIXED:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {NAME} and cpu ({name})")
        generator = self.given.get("generator")
        if generator is not None and self.of_device:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device}' ({name})")
        wanted = self.given.get("device")
        self.to_device = self.of_device if wanted is None else wanted.type == NAME

    def _convert(self, key: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            if value.device.type != NAME:
                self.of_host |= value.dim() > 0
                return value
            self.of_device = True
            if key in self.plan.out and value.numel() == 0:
                self.resized.append((value, torch.empty(0, dtype=value.dtype)))
                return self.resized[-1][1]
            return on_cpu(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (Tensor, type(None))):
            return [self._convert(key, each) for each in value]
        if isinstance(value, torch.device):
            return CPU
        return None if key == "pin_memory" else value

    def run(self, operator: Callable) -> Any:
        result = operator(*self.args, **self.kwargs)
        for target, value in self.resized:
            target.resize_(value.size())
            on_cpu(target).copy_(value)
        if not self.plan.results:
            return None
        found = (result,) if len(self.plan.results) == 1 else result
        given = [
            self.given[owner] if owner else self._back(x) for owner, x in zip(self.plan.results, found, strict=True)
        ]
        return given[0] if len(given) == 1 else tuple(given)

    def _back(self, x: Any) -> Any:
        if isinstance(x, Tensor):
            return on_device(x) if self.to_device else x
        return [self._back(each) for each in x] if isinstance(x, (list, tuple)) else x


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    on_cpu(target).copy_(on_cpu(source))
    return target


def _resize(x: Tensor, size: list[int], **kwargs: Any) -> Tensor:
    fresh = torch.empty(size, dtype=x.dtype)
    if fresh.nbytes <= x.untyped_storage().nbytes() - x.storage_offset() * x.itemsize:
        return torch.ops.aten.resize_.default.redispatch(_BY_CPU, x, size, **kwargs)
    fresh = on_device(fresh)
    return _set.redispatch(_BY_CPU, x, fresh.untyped_storage(), 0, fresh.size(), fresh.stride())


def _to_copy(x: Tensor, *, device: torch.device | None = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """torch's own wants an allocator of pinned memory for copies to the host that nobody waits for."""
    kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "pin_memory"}
    copy = torch.ops.aten._to_copy.default(on_cpu(x), **kwargs)
    return copy if device is not None and device.type == "cpu" else on_device(copy)


def _by(operator: Any) -> Callable:
    """What computes an operator of the CPU for tensors of the device, one with another name there."""

    def call(*args: Any) -> Any:
        return _Call(operator._schema.name, _Plan(operator), args, {}).run(operator)

    return call


_SPECIAL: dict[str, Callable] = {
    "aten::_local_scalar_dense": lambda x: on_cpu(x).item(),
    "aten::_copy_from": _copy_from,
    "aten::resize_": _resize,
}


def install() -> None:
    """Give this process the device, and the engine its backend."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(_kernel, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    own.impl("_to_copy", _to_copy, "PrivateUse1")
    own.impl("convolution_overrideable", _by(torch.ops.aten.convolution.default), "PrivateUse1")
    _kept.extend((library, own))
    _patch_storages()
    _patch_pinning()
    _patch_streams()
    module = ModuleType(f"mova_engine.backend.{NAME}")
    module.BACKEND = StandinBackend()
    sys.modules[module.__name__] = module
    mova_engine.backend.NAMES = (*mova_engine.backend.NAMES, NAME)
    machine.KINDS = (*machine.KINDS, NAME)


def _patch_storages() -> None:
    resize = torch.UntypedStorage.resize_

    def resized(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
        """Memory that is given up is gone, and comes back as something else."""
        if storage.device.type != NAME:
            return resize(storage, size)
        if size not in (0, storage.nbytes()):
            raise RuntimeError(f"a storage of {NAME} has {storage.nbytes()} bytes, which cannot become {size}")
        if size == 0 and storage.nbytes():
            ones = torch.full((storage.nbytes(),), 255, dtype=torch.uint8)
            torch.empty(0, dtype=torch.uint8).set_(_of_cpu(storage)).copy_(ones)
        return storage

    torch.UntypedStorage.resize_ = resized


def _of_cpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    return torch._C._construct_storage_from_data_pointer(storage.data_ptr(), CPU, storage.nbytes())


def _patch_pinning() -> None:
    """Pinned memory is a copy, known by its place."""

    def pin_memory(x: Tensor, *device: object) -> Tensor:
        if x.device.type != "cpu":
            raise RuntimeError(f"cannot pin a tensor on {x.device}")
        if not x.is_pinned():
            x = x.detach().clone()
            _pinned.add(x.untyped_storage().data_ptr())
        return x

    empty = torch.empty

    def empty_pinned(*size: Any, pin_memory: bool = False, **settings: Any) -> Tensor:
        return empty(*size, **settings).pin_memory() if pin_memory else empty(*size, **settings)

    torch.empty = empty_pinned
    torch.Tensor.pin_memory = pin_memory
    torch.Tensor.is_pinned = lambda x, *device: x.untyped_storage().data_ptr() in _pinned


def _patch_streams() -> None:
    """torch's own would be the CPU's where a device is written in Python."""
    torch.Stream = torch.Event = _Stream
    torch.accelerator.current_stream = lambda device=None: _Stream()
    torch.Tensor.record_stream = lambda self, stream: None
