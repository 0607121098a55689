"""Process groups, the collective operations that the engine uses, and a count of the bytes they send.

All communication goes through `Group`. A collective library handles tensors of one kind of device only: NCCL and HCCL
their own, gloo the CPU's (torch's gloo also takes GPU tensors, but no NPU tensors). A `Group` therefore knows its
device; a tensor on another device is copied there, and the result is copied back. With NCCL and HCCL all ranks must
take part in a group's first operation, also if it is point-to-point, or it hangs: `open_group` runs one all-reduce.

Bytes are counted for this rank by the same rules as the prediction (`mova_engine.predict.context_traffic`): an
all-to-all counts what goes to other ranks, a shift all of it, an all-reduce of n bytes 2 (p - 1) / p * n (a ring's).
"""

import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

from mova_engine.distributed.phase_clock import PhaseClock
from mova_engine.ops.custom_ops import Named

CPU = torch.device("cpu")


class Group(Named):
    """A process group. `rank` and `size` are this process's rank in it and its number of ranks. With one rank, no
    operation calls the collective library.

    process_group: None: a group of this process alone. device: the device of tensors that the group's library handles.
    sent: bytes sent by this rank, by kind of operation. calls: operations that this process has started in all groups.
    clock: of this process's steps, for all groups. timed: whether it measures this group's waits.
    """

    calls = 0
    clock: PhaseClock | None = None

    def __init__(self, process_group: dist.ProcessGroup | None = None, device: torch.device = CPU) -> None:
        super().__init__()
        self.process_group, self.device = process_group, device
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.size = 1 if process_group is None else dist.get_world_size(process_group)
        self.sent: Counter[str] = Counter()
        self.timed = True

    def all_to_all(
        self, x: Tensor, send: Sequence[int], receive: Sequence[int], into: Tensor | None = None
    ) -> Callable[[], Tensor]:
        """Start an all-to-all of the flat tensor x: consecutive pieces of `send[i]` elements go to rank i.

        Returns a function that waits and returns the received elements, `receive[i]` from rank i, in order of ranks.
        into: the flat tensor that takes them; None: a new one. With one rank it is not used.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        own = self._on_group_device(x)
        direct = into is not None and into.device.type == own.device.type
        out = into if direct and into is not None else own.new_empty(sum(receive))
        self.sent["all_to_all"] += (x.numel() - send[self.rank]) * x.element_size()
        work = dist.all_to_all_single(out, own, list(receive), list(send), group=self.process_group, async_op=True)
        assert work is not None, "async_op=True returns a Work"

        # The default argument keeps the sent tensor alive until the operation has finished.
        def finish(_own: Tensor = own) -> Tensor:
            with self._waiting():
                work.wait()
            if into is None or into is out:
                return out.to(x.device)
            return into.copy_(out)

        return finish

    def shift(self, x: Tensor, receive: int) -> Callable[[], Tensor]:
        """Start sending the flat tensor x to the next rank, cyclically.

        Returns a function that waits and returns the `receive` elements that the previous rank sent.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        own = self._on_group_device(x)
        out = own.new_empty(receive)
        self.sent["shift"] += x.numel() * x.element_size()
        # Empty messages are skipped on both sides: not every library supports them.
        operations = []
        if x.numel():
            operations.append(dist.P2POp(dist.isend, own, self._global(self.rank + 1), self.process_group))
        if receive:
            operations.append(dist.P2POp(dist.irecv, out, self._global(self.rank - 1), self.process_group))
        works = dist.batch_isend_irecv(operations) if operations else []

        # The default argument keeps the sent tensor alive until the operation has finished.
        def finish(_own: Tensor = own) -> Tensor:
            with self._waiting():
                for work in works:
                    work.wait()
            return out.to(x.device)

        return finish

    def all_reduce(self, x: Tensor, maximum: bool = False) -> Tensor:
        """Replace x by its sum (or maximum) over all ranks; returns x."""
        if self.size > 1:
            Group.calls += 1
            self.sent["all_reduce"] += 2 * (self.size - 1) * x.numel() * x.element_size() // self.size
            own = self._on_group_device(x)
            with self._waiting():
                dist.all_reduce(own, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.process_group)
            if own is not x:
                x.copy_(own)
        return x

    def start_all_reduce(self, x: Tensor) -> Callable[[], Tensor]:
        """Start replacing x by its sum over all ranks. Returns a function that waits and returns x; nobody may read or
        write x until then.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        self.sent["all_reduce"] += 2 * (self.size - 1) * x.numel() * x.element_size() // self.size
        own = self._on_group_device(x)
        work = dist.all_reduce(own, group=self.process_group, async_op=True)
        assert work is not None, "async_op=True returns a Work"

        def finish() -> Tensor:
            with self._waiting():
                work.wait()
            return x if own is x else x.copy_(own)

        return finish

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenate the flat tensors of all ranks in rank order; rank i's has `sizes[i]` elements."""
        return self.all_to_all(x.repeat(self.size), [x.numel()] * self.size, sizes)()

    def neighbours(self, first: Tensor | None, last: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Exchange halos: send `first` to the previous rank and `last` to the next; return (previous rank's `last`,
        next rank's `first`), of the same shapes.

        An argument is None on an edge rank, which has no such neighbour; the result is then None too. Ranks that have
        nothing to exchange need not call this, provided that the group was opened by `open_group`.
        """
        Group.calls += 1
        operations: list[dist.P2POp] = []
        received: list[tuple[Tensor, torch.device] | None] = []
        for x, step in ((first, -1), (last, 1)):
            if x is None:
                received.append(None)
                continue
            self.sent["neighbours"] += x.numel() * x.element_size()
            own = self._on_group_device(x)
            other = torch.empty_like(own, memory_format=torch.contiguous_format)
            received.append((other, x.device))
            peer = self._global(self.rank + step)
            operations.append(dist.P2POp(dist.isend, own, peer, self.process_group))
            operations.append(dist.P2POp(dist.irecv, other, peer, self.process_group))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        above, below = (None if pair is None else pair[0].to(pair[1]) for pair in received)
        return above, below

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """Return the x of rank `source`. x has the same shape and dtype on all ranks, and may be overwritten."""
        if self.size == 1:
            return x
        Group.calls += 1
        self.sent["broadcast"] += x.numel() * x.element_size() if self.rank == source else 0
        own = self._on_group_device(x)
        dist.broadcast(own, self._global(source), group=self.process_group)
        return own.to(x.device)

    def send(self, x: Tensor, to: int) -> None:
        """Send x to rank `to`, which calls `receive`. Only for CPU groups: NCCL and HCCL open another communicator for
        a point-to-point message outside of a batch.
        """
        dist.send(self._on_group_device(x), self._global(to), group=self.process_group)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """Wait for the tensor that rank `source` sends with `send`; return it on the group's device."""
        x = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        dist.recv(x, self._global(source), group=self.process_group)
        return x

    def send_object(self, value: Any, to: int) -> None:
        """Send a picklable value, of any size, to rank `to`, which calls `receive_object`. Only for CPU groups."""
        data = torch.frombuffer(bytearray(pickle.dumps(value, pickle.HIGHEST_PROTOCOL)), dtype=torch.uint8)
        self.send(torch.tensor([len(data)]), to)
        self.send(data, to)

    def receive_object(self, source: int) -> Any:
        """Wait for the value that rank `source`, another process of this run, sends with `send_object`."""
        size = int(self.receive((1,), torch.int64, source))
        return pickle.loads(self.receive((size,), torch.uint8, source).numpy().data)

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the small, picklable values of all ranks, by rank. Only for CPU groups."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def broadcast_object(self, value: Any, source: int) -> Any:
        """Return the small, picklable value of rank `source`. Only for CPU groups."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, self._global(source), group=self.process_group)
        return values[0]

    def _waiting(self) -> AbstractContextManager[None]:
        """A with-block in which this process waits for other ranks."""
        return Group.clock.exchange() if Group.clock is not None and self.timed else nullcontext()

    def _on_group_device(self, x: Tensor) -> Tensor:
        """x, contiguous, on the device whose tensors the group's library handles."""
        return x.to(self.device).contiguous()

    def _global(self, rank: int) -> int:
        """The global rank of a rank of this group, counted cyclically."""
        assert self.process_group is not None, "a group of one rank exchanges nothing"
        return dist.get_global_rank(self.process_group, rank % self.size)


def open_group(process_group: dist.ProcessGroup, device: torch.device) -> Group:
    """Return the Group of `process_group` for tensors on `device`. Collective: it runs one all-reduce."""
    group = Group(process_group, device)
    if group.size > 1:
        dist.all_reduce(torch.zeros(1, device=device), group=process_group)
    return group


def open_cpu_group(timeout: timedelta, partition: Sequence[Sequence[int]] | None = None) -> Group:
    """A new gloo group for CPU tensors: of all ranks, or the member of `partition` (lists of global ranks, each rank in
    one list) that contains this rank. Collective: all ranks call it.
    """
    if partition is None:
        made = dist.new_group(backend="gloo", timeout=timeout)
    else:
        made = dist.new_subgroups_by_enumeration([list(ranks) for ranks in partition], timeout, backend="gloo")[0]
    assert isinstance(made, dist.ProcessGroup), "every rank is a member of the group that it opens"
    group = Group(made)
    # Threads beside the step use it, and what waits for a process that works alone.
    group.timed = False
    return group


def total_sent(groups: Sequence[Group]) -> int:
    """Bytes that this rank has sent in `groups`."""
    return sum(sum(group.sent.values()) for group in groups)


def accumulating_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which partial results of `dtype` are summed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _TimedAllGather:
    """FSDP2's all-gather, which a clock measures."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, async_op: bool = False) -> Any:
        with self._clock.exchange():
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)


class _TimedReduceScatter(_TimedAllGather):
    """FSDP2's reduce-scatter."""

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> Any:
        with self._clock.exchange():
            return dist.reduce_scatter_tensor(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def time_sharding(model: nn.Module, clock: PhaseClock) -> None:
    """Have `clock` measure the exchanges of a model that FSDP2 divides among CPUs; of one that it does not, nothing."""
    module: Any
    for module in model.modules():
        # Older releases of torch than 2.8 have no such methods: there the waits count to their phase.
        if hasattr(module, "set_custom_all_gather") and hasattr(module, "set_custom_reduce_scatter"):
            module.set_custom_all_gather(_TimedAllGather(clock))
            module.set_custom_reduce_scatter(_TimedReduceScatter(clock))
