"""Measures peak memory in the same way on every device: as the bytes of live tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class _Event:
    """A storage was allocated (bytes > 0) or freed (bytes < 0)."""

    storage: int
    bytes: int


class LiveTensors(TorchDispatchMode):
    """Records when the storages that operations return are allocated and freed, in forward and backward.

    Counted: every storage that is the output of an operation within the block, of torch's own and of kernels
    registered with `torch.library` alike, once, however many views it has, from its operation to its release. So what
    autograd saves counts for as long as it is held. Not counted: what existed before (weights, inputs), and scratch
    memory that an operation takes and returns within itself. What torch.compile generates is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[_Event] = []
        self._alive: dict[int, finalize] = {}
        self._count = 0
        self.names: dict[int, int] = {}  # data pointer of a living storage -> its number

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            # An in-place operation or a view returns memory that was there.
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in before:
                self._born(storage)
        return result

    def _born(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive or not storage.nbytes():
            return
        self._count += 1
        self.events.append(_Event(self._count, storage.nbytes()))
        self.names[storage.data_ptr()] = self._count
        self._alive[key] = finalize(storage, partial(self._died, key, self._count, storage.nbytes()))

    def _died(self, key: int, number: int, size: int) -> None:
        del self._alive[key]
        self.events.append(_Event(number, -size))

    def peak(self, without: Iterable[Tensor] = ()) -> int:
        """The most bytes alive at once, not counting the storages of `without`, which must still be alive."""
        left_out = {self.names.get(x.untyped_storage().data_ptr()) for x in without}
        alive = peak = 0
        for event in self.events:
            if event.storage not in left_out:
                alive += event.bytes
                peak = max(peak, alive)
        return peak


def peak_above_gradients(run: Callable[[], object], gradients: Callable[[], Iterable[Tensor]]) -> int:
    """Peak bytes of `run()` above what existed before it, not counting the gradients that it leaves behind.

    gradients: called after the run, returns them.
    """
    with LiveTensors() as live:
        run()
    return live.peak(without=gradients())
