"""Offloading of what a layer keeps for its backward to host memory: its inputs, and results of chosen operators.

With checkpointing a layer keeps its inputs, 17.7 GB for 40 layers at 360p and twice that where gates are trained, and
the results of the operators that are not recomputed: attention's output and log-sum-exp, 17.9 GB. Each tensor is copied
to host memory while later layers compute, and back one layer ahead of the backward, so that the device has what two
layers keep. Where the forward turns into the backward, tensors that are still on the device are used as they are. On
the CPU, which has no streams, the copies are ordinary ones.

Copies run on a stream of their own. It waits for the computation by events, and the computation for it. Memory of the
one stream never goes back to the allocator while the other may use it: a tensor is held here until the computation has
waited for its copy.
"""

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from mova_engine.backend import describe_backend
from mova_engine.config.stages import OFFLOAD_LAYERS
from mova_engine.memory.kept_results import OfOperators
from mova_engine.ops import in_flight  # noqa: F401 the operator `mova::received`


def tensor_key(x: Tensor) -> tuple[int, int, torch.Size]:
    """A key that is equal for two tensors of the same storage, offset and shape. Works for fake tensors as well."""
    return x.untyped_storage()._cdata, int(x.storage_offset()), x.shape


@dataclass(frozen=True)
class ArenaReport:
    """What an arena did so far: bytes copied to the host and back. host_bytes: size of its host memory."""

    to_host: int
    from_host: int
    host_bytes: int


@dataclass(eq=False)
class _Waiting:
    """A tensor that waits. host: its copy. here: the tensor on the device, the original or the copy back; None: none is
    there. version: of the original, which nothing may change before it is copied. copied: after its last copy.
    """

    host: Tensor
    device: torch.device
    here: Tensor | None = None
    version: int | None = None
    copied: torch.Event | None = None

    def wait(self) -> None:
        """Let the computation wait for the last copy; then the memory of `here` may be used for something else."""
        if self.copied is not None:
            torch.accelerator.current_stream(self.device).wait_event(self.copied)
            self.copied = None
        if self.here is not None and self.version is not None and self.here._version != self.version:
            raise RuntimeError(
                f"a tensor {list(self.here.shape)} that waits on the host for the backward was changed in place "
                "after the forward had kept it"
            )
        self.version = None


class ActivationArena:
    """Host memory in which tensors wait, layer by layer, between the forward and the backward.

    Buffers are taken as they are wanted, of exactly that size (`Backend.host_memory`), and serve again when the graph
    that they belong to is gone: from the second step on an arena takes no memory.

    poison: fill buffers with NaN when they are free again; for tests.
    """

    def __init__(self, poison: bool = False) -> None:
        self._poison = poison
        self._free: list[Tensor] = []
        self._stream: torch.Stream | None = None
        # The layers of the forward whose tensors are on the device still; the layer that the backward is at; tensors
        # that were sent for and that nobody has taken.
        self._held: deque[LayerCopies] = deque()
        self._current: LayerCopies | None = None
        self._sent_for: list[_Waiting] = []
        self._last: weakref.ref[LayerCopies] | None = None
        self._to_host = self._from_host = self._host_bytes = 0

    def begin_layer(self) -> "LayerCopies":
        """Begin the next layer of a forward."""
        self._current = None
        self._drop_untaken()
        while len(self._held) >= OFFLOAD_LAYERS:
            self._held.popleft().leave_device()
        found = LayerCopies(self, self._last)
        weakref.finalize(found, self._give_back, found.buffers).atexit = False
        self._held.append(found)
        self._last = weakref.ref(found)
        return found

    def report(self) -> ArenaReport:
        return ArenaReport(self._to_host, self._from_host, self._host_bytes)

    def send(self, x: Tensor, buffers: list[Tensor]) -> _Waiting:
        """Copy `x` to the host, into a buffer that is added to `buffers`."""
        x = x.detach()
        buffers.append(self._buffer(x.nbytes, x.device))
        host = _laid_out_as(x, buffers[-1])
        self._to_host += x.nbytes
        self._connect(x.device)
        if self._stream is None:
            self.copy(host, x)
            return _Waiting(host, x.device)
        self._stream.wait_event(torch.accelerator.current_stream(x.device).record_event())
        with self._stream:
            self.copy(host, x)
        return _Waiting(host, x.device, x, x._version, self._stream.record_event())

    def send_for(self, waiting: _Waiting) -> None:
        """Copy a tensor back to the device, where it is not there."""
        if waiting.here is not None:
            return
        self._from_host += waiting.host.nbytes
        waiting.here = torch.empty_like(waiting.host, device=waiting.device)
        self._sent_for.append(waiting)
        if self._stream is None:
            self.copy(waiting.here, waiting.host)
            return
        # Whoever had this memory before may still compute with it.
        self._stream.wait_event(torch.accelerator.current_stream(waiting.device).record_event())
        with self._stream:
            self.copy(waiting.here, waiting.host)
        waiting.copied = self._stream.record_event()

    def take(self, waiting: _Waiting) -> Tensor:
        """The tensor on the device, once it is there; it is sent for where it is not."""
        self.send_for(waiting)
        waiting.wait()
        if waiting in self._sent_for:
            self._sent_for.remove(waiting)
        here, waiting.here = waiting.here, None
        assert here is not None, "it was sent for"
        return here

    def come_to(self, layer: "LayerCopies") -> None:
        """The backward has come to a layer. What the one before it has left goes; its tensors come, and the next's."""
        if self._current is layer:
            return
        if self._current is not None:
            self._current.leave_device()
        self._current = layer
        for each in (layer, layer.before and layer.before()):
            if each is not None:
                each.come()

    @staticmethod
    def copy(target: Tensor, source: Tensor) -> None:
        """Copy on the current stream."""
        target.copy_(source, non_blocking=True)

    def _connect(self, device: torch.device) -> None:
        if self._stream is None and device.type != "cpu":
            self._stream = torch.Stream(device)

    def _drop_untaken(self) -> None:
        for waiting in self._sent_for:
            waiting.wait()
            waiting.here = None
        self._sent_for.clear()

    def _buffer(self, size: int, device: torch.device) -> Tensor:
        found = min((each for each in self._free if len(each) >= size), key=len, default=None)
        if found is None and self._free:
            # Clips of another size: what is too small makes room.
            if self._stream is not None:
                self._stream.synchronize()
            small = max(self._free, key=len)
            self._remove(small)
            self._host_bytes -= len(small)
        if found is None:
            self._host_bytes += size
            return describe_backend(device.type).host_memory(size)
        self._remove(found)
        return found

    def _remove(self, buffer: Tensor) -> None:
        # In place: the end of a graph may add to the list at any time.
        del self._free[next(i for i, each in enumerate(self._free) if each is buffer)]

    def _give_back(self, buffers: list[Tensor]) -> None:
        if self._poison:
            for each in buffers:
                each.fill_(0xFF)  # NaN in every floating-point format
        self._free.extend(buffers)


class LayerCopies:
    """What one layer of a forward keeps on the host. before: the layer before it, at which the backward arrives next.

    buffers: the host memory that its tensors take.
    """

    def __init__(self, arena: ActivationArena, before: "weakref.ref[LayerCopies] | None") -> None:
        self.before, self.buffers = before, list[Tensor]()
        self._arena, self._tensors = arena, list[_Waiting]()

    @contextmanager
    def inputs(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the block autograd saves host copies of `tensors`. It saves all other tensors as usual."""
        mine = set(map(tensor_key, tensors))

        def pack(x: Tensor) -> "Tensor | _Ticket":
            return self.put(x) if tensor_key(x) in mine else x

        def unpack(packed: "Tensor | _Ticket") -> Tensor:
            return self.take(packed) if isinstance(packed, _Ticket) else packed

        with saved_tensors_hooks(pack, unpack):
            yield

    def results(self, operators: frozenset[torch._ops.OpOverload]) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        """The contexts of the layer's forward, which puts the operators' results on the host, and of its recomputation,
        which takes them instead of running the operators: `context_fn` of `torch.utils.checkpoint`.
        """
        kept: dict[tuple[torch._ops.OpOverload, int], Any] = {}
        return _Putting(operators, self.put, kept), _Taking(operators, self.take, kept)

    def put(self, x: Tensor) -> "_Ticket | Tensor":
        """What stands for x. An expanded tensor (stride 0) has no memory worth a copy: it stands for itself."""
        if 0 in x.stride():
            return x
        self._tensors.append(self._arena.send(x, self.buffers))
        return _Ticket(self, len(self._tensors) - 1)

    def take(self, ticket: "_Ticket") -> Tensor:
        self._arena.come_to(self)
        return self._arena.take(self._tensors[ticket.index])

    def come(self) -> None:
        """Send for all that is not on the device."""
        for waiting in self._tensors:
            self._arena.send_for(waiting)

    def leave_device(self) -> None:
        """Free the tensors on the device, once their copies are complete."""
        for waiting in self._tensors:
            waiting.wait()
            waiting.here = None


@dataclass(frozen=True, eq=False)
class _Ticket:
    """What autograd keeps in place of a tensor that waits."""

    layer: LayerCopies
    index: int


class _Putting(OfOperators):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self.operators:
            # What goes to the host has to be there.
            tree_map_only(Tensor, torch.ops.mova.received, result)
            self.kept[self.next_call(func)] = tree_map_only(Tensor, self.move, result)
        return result


class _Taking(OfOperators):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func not in self.operators:
            return func(*args, **(kwargs or {}))
        return tree_map_only(_Ticket, self.move, self.of_forward(self.next_call(func)))


def _laid_out_as(x: Tensor, buffer: Tensor) -> Tensor:
    """A view of a host buffer (uint8) for the values of `x`; where its memory has no gaps, in the order of that, so
    that the copy back has the same strides.
    """
    flat = buffer[: x.nbytes].view(x.dtype)
    dense = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True)).is_contiguous()
    return flat.as_strided(x.shape, x.stride()) if dense else flat.view(x.shape)
