"""Tracks the bytes on a device during a step by purpose: every storage counts once, from its creation until it is
freed.

A dispatch mode sees the tensors of every operation, in forward, backward and recomputation, fake (with a
`FakeTensorMode` beneath it) or real. It does not see memory that an operation of torch allocates and frees internally.
For a custom operator on fake tensors it runs the registered fake implementation itself, so that the operator's
workspace counts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch
from weakref import finalize

import torch
from torch import Tensor
from torch._library import simple_registry
from torch._subclasses import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

PARAMETERS, GRADIENTS, MOMENTS, AVERAGE = "parameters", "gradients", "moments", "moving average"
# FSDP2's buffers: all-gathered weights, and gradients before their reduce-scatter.
GATHERED, REDUCED = "gathered weights", "gradients being summed"
INPUTS, ACTIVATIONS = "inputs", "activations kept"
EXCHANGED, WORKSPACE, WORKING = "exchange buffers", "workspaces", "working set"
# The device memory that holds the streamed layers.
SLOTS = "layers on their way"
# Namespaces of torch's own operations, whose fake implementations are not run here.
_TORCH = {"aten", "prim", "prims", "profiler", "inductor", "c10d", "_c10d_functional", "fsdp"}
_FORWARD, _BACKWARD, _UPDATE = "forward", "backward", "update"
# The engine's own operators (`ops.custom_ops`).
_OWN = "mova"
# How many tensors of a peak are listed.
_LARGEST = 12
_DEVICE_OF = torch.ops.prim.device.default
_GATHERING = {"_allgather_base_", "allgather_into_tensor_coalesced_", "all_gather_into_tensor"}
_REDUCING = {"_reduce_scatter_base_", "reduce_scatter_tensor"}


@dataclass(eq=False)
class _Record:
    """A storage: bytes, purpose ("": derived from when it was made and freed), the pass and the operation in which it
    was made, and its tensor's shape there.
    """

    bytes: int
    part: str
    made_in: str
    made_by: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Peak:
    """The moment with the most bytes allocated: how many, by purpose; the largest tensors, as text."""

    bytes: int
    parts: dict[str, int]
    largest: tuple[str, ...]


def is_wrapped(types: Iterable[type]) -> bool:
    """Whether an operation has wrapper subclasses (DTensor) as arguments: a mode then handles the operation on the
    tensors inside them instead.
    """
    return any(kind is not FakeTensor and hasattr(kind, "__tensor_flatten__") for kind in types)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """All tensors among an operation's arguments, also in lists and dicts. (`tree_leaves` is too slow here.)"""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


class MemoryTracker(TorchDispatchMode):
    """Counts the storages of tensors on devices of one type. Use as a context, above a FakeTensorMode if there is one.

    operations: how many were seen. in_update: set by the caller while weights are updated. watch: told of each
    operation after it has run, also of those within the engine's own operators: (operation, args, kwargs, result,
    pass).
    """

    def __init__(self, device: str, watch: Callable[[Any, tuple, dict, Any, str], None] | None = None) -> None:
        super().__init__()
        self.device, self.watch = device, watch
        self.operations = 0
        self._alive: dict[int, tuple[_Record, finalize]] = {}
        self.in_update = False
        # (record, change in bytes); (index of the first event of a pass, the pass).
        self._events: list[tuple[_Record, int]] = []
        self._passes: list[tuple[int, str]] = []
        self._pass = _FORWARD
        self._part = ""
        self._nested = 0
        self._resizing: Any = None

    def __enter__(self) -> "MemoryTracker":
        # FSDP2 frees and reallocates gathered weights by `resize_` of the storage, which no dispatch mode sees.
        if self._nested == 0:
            self._resizing = patch.object(torch.UntypedStorage, "resize_", self._resized())
            self._resizing.__enter__()
        self._nested += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._nested -= 1
        if self._nested == 0:
            self._resizing.__exit__(None, None, None)
        super().__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing is compiled here; skipping dynamo's check saves time in each of half a million operations.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is _DEVICE_OF:
            # Called more often on fake tensors than all other operations together.
            return args[0].device
        if is_wrapped(types):
            return NotImplemented
        kwargs = kwargs or {}
        self.operations += 1
        self._follow_pass()
        given = tensors_in((*args, *kwargs.values()))
        for x in given:
            self._see(x, "an input")
        name = func.overloadpacket.__name__
        if name in _GATHERING or name in _REDUCING:
            self.label(given, GATHERED if name in _GATHERING else REDUCED)
        elif name == "chunk_cat":
            # The unsharded gradients of an FSDP unit, before their reduce-scatter.
            self.label(given, REDUCED)
        result = self._run(func, given, args, kwargs)
        for x in tensors_in((result,)):
            self._see(x, func.name())
        if self.watch is not None:
            self.watch(func, args, kwargs, result, self._pass)
        return result

    def _run(self, func: Any, given: list[Tensor], args: tuple, kwargs: dict) -> Any:
        if not any(isinstance(x, FakeTensor) for x in given) or func.namespace in _TORCH:
            return func(*args, **kwargs)
        if func.namespace == _OWN:
            # Composed of torch's operations, collectives and bound operators, all of which the mode sees.
            declared = partial(func._op_dk, torch.DispatchKey.CompositeExplicitAutograd)
        else:
            declared = simple_registry.singleton.find(func.name()).fake_impl.kernel
        if declared is None:
            return func(*args, **kwargs)
        watch = self.watch
        if func.namespace != _OWN:
            # What makes its results stands for one kernel.
            self.watch = None
        try:
            with self, self.within(WORKSPACE):
                result = declared(*args, **kwargs)
        finally:
            self.watch = watch
        for x in tensors_in((result,)):
            if x.untyped_storage()._cdata in self._alive:
                self._alive[x.untyped_storage()._cdata][0].part = self._part
        return result

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        """Storages made inside the with-block get the purpose `part`."""
        before, self._part = self._part, part
        try:
            yield
        finally:
            self._part = before

    def label(self, tensors: Iterable[Tensor], part: str, *, known: bool = False) -> None:
        """Set the purpose of tensors that were seen before. known: also replace a purpose that is already set."""
        for x in tensors:
            found = self._alive.get(x.untyped_storage()._cdata)
            if found is not None and (known or not found[0].part):
                found[0].part = part

    def now(self) -> dict[str, int]:
        """Bytes allocated now, by purpose."""
        parts: Counter[str] = Counter()
        for record, _ in self._alive.values():
            parts[record.part or WORKING] += record.bytes
        return dict(parts)

    def forget(self) -> None:
        """Start a new interval for `peak` with the storages that are allocated now."""
        self._events = [(record, record.bytes) for record, _ in self._alive.values()]
        self._passes = [(0, self._pass)]

    def peak(self) -> Peak:
        """The peak since the start or the last `forget`. Storages that were made in a forward and are still allocated
        when its backward begins count as activations kept.
        """
        alive = most = 0
        at = -1
        for index, (_, change) in enumerate(self._events):
            alive += change
            if alive > most:
                most, at = alive, index
        held: dict[_Record, int] = defaultdict(int)
        for record, change in self._events[: at + 1]:
            held[record] += change
        begun, now = next(((i, name) for i, name in reversed(self._passes) if i <= at), (0, _FORWARD))
        kept = self._kept(begun if now == _BACKWARD else at + 1) if now != _UPDATE else set()
        parts: Counter[str] = Counter()
        for record, size in held.items():
            if size:
                parts[record.part or (ACTIVATIONS if record in kept else WORKING)] += size
        largest = sorted((x for x, size in held.items() if size), key=lambda x: -x.bytes)[:_LARGEST]
        words = tuple(f"{x.bytes / 1e9:.3f} GB {list(x.shape)} of {x.made_by} in {x.made_in}" for x in largest)
        return Peak(most, dict(sorted(parts.items(), key=lambda item: -item[1])), words)

    def _kept(self, end: int) -> set[_Record]:
        """Storages made in a forward that are allocated at event `end`."""
        held: dict[_Record, int] = defaultdict(int)
        for record, change in self._events[:end]:
            held[record] += change
        return {record for record, size in held.items() if size and record.made_in == _FORWARD}

    def _follow_pass(self) -> None:
        backward = torch._C._current_autograd_node() is not None
        now = _BACKWARD if backward else _UPDATE if self.in_update else _FORWARD
        if now != self._pass:
            self._pass = now
            self._passes.append((len(self._events), now))

    def _see(self, x: Tensor, made_by: str) -> None:
        if x.device.type != self.device:
            return
        storage = x.untyped_storage()
        if storage._cdata not in self._alive and storage.nbytes():
            self._born(storage, made_by, tuple(x.shape))

    def _born(self, storage: torch.UntypedStorage, made_by: str, shape: tuple[int, ...]) -> None:
        record = _Record(storage.nbytes(), self._part, self._pass, made_by, shape)
        self._events.append((record, record.bytes))
        self._alive[storage._cdata] = record, finalize(storage, partial(self._died, storage._cdata, record))

    def _died(self, key: int, record: _Record) -> None:
        del self._alive[key]
        self._events.append((record, -record.bytes))

    def _resized(self) -> Any:
        original = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> Any:
            found = self._alive.get(storage._cdata)
            result = original(storage, size)
            if found is not None:
                record = found[0]
                self._events.append((record, size - record.bytes))
                record.bytes = size
                if not size:
                    # Only FSDP2 does this, to weights that it will gather again.
                    record.part = record.part or GATHERED
            return result

        return resize_
