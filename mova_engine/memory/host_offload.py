"""Block inputs that wait for the backward pass in the host's memory.

With checkpointing a layer keeps its inputs alone; at 360p they are 17.7 GB for 40 layers, twice that where gates are
trained. Here each is copied to pinned host memory while the next layer computes, and copied back one layer ahead of the
backward, so that at most two layers' inputs are on the device. On a device without streams of its own (a CPU) the
copies are plain ones.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


@dataclass(eq=False)
class _Copy:
    """One tensor's copy on the host and, while it is being brought back, the copy of that on the device."""

    host: Tensor
    device: torch.device
    layer: int
    done: torch.Event | None = None
    started: bool = False
    back: Tensor | None = None


def place(x: Tensor) -> tuple[int, int, torch.Size]:
    """What tells a saved tensor from others, also one without data."""
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape


class HostCopies:
    """The inputs of one forward's checkpointed layers, in order."""

    def __init__(self) -> None:
        self.layers: list[list[_Copy]] = []
        self.stream: torch.Stream | None = None

    @contextmanager
    def of(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Within the block autograd saves copies of exactly these tensors on the host; anything else as ever."""
        mine = set(map(place, tensors))
        self.layers.append([])

        def pack(x: Tensor) -> Tensor | _Copy:
            return self._out(x) if place(x) in mine else x

        def unpack(packed: Tensor | _Copy) -> Tensor:
            return self._in(packed) if isinstance(packed, _Copy) else packed

        with saved_tensors_hooks(pack, unpack):
            yield

    def _out(self, x: Tensor) -> _Copy:
        x, layer = x.detach(), len(self.layers) - 1
        if x.device.type == "cpu":
            copy = _Copy(x.clone(), x.device, layer)
        else:
            self.stream = self.stream or torch.Stream(x.device)
            host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self.stream.wait_stream(torch.accelerator.current_stream(x.device))
            with self.stream:
                host.copy_(x, non_blocking=True)
            # The allocator must not hand the memory to someone else before it has been read.
            x.record_stream(self.stream)
            copy = _Copy(host, x.device, layer, self.stream.record_event())
        self.layers[-1].append(copy)
        return copy

    def _in(self, copy: _Copy) -> Tensor:
        # This layer's, and those of the one before it, which the backward asks for next.
        for layer in self.layers[max(copy.layer - 1, 0) : copy.layer + 1]:
            for wanted in layer:
                if not wanted.started:
                    self._start(wanted)
        if copy.back is None:
            # Handed out before: this is another backward through the same graph.
            self._start(copy)
        if copy.done is not None:
            stream = torch.accelerator.current_stream(copy.device)
            stream.wait_event(copy.done)
            copy.back.record_stream(stream)
        back, copy.back = copy.back, None
        return back

    def _start(self, copy: _Copy) -> None:
        copy.started = True
        if copy.done is None:
            copy.back = copy.host.clone()
            return
        with self.stream:
            copy.back = copy.host.to(copy.device, non_blocking=True)
        copy.done = self.stream.record_event()
