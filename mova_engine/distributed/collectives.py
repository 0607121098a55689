"""A process group with the exchanges that the engine is made of, and a count of what they send.

Every exchange goes through here. A collective library carries tensors of one kind of device alone: NCCL and HCCL their
own, gloo the CPU's (torch's takes a GPU's too, but no NPU's). A `Group` therefore knows where its tensors have to be;
what lies elsewhere is carried there and its result back. NCCL and HCCL also want all ranks in the first exchange of a
group, point-to-point messages included, or they wait for ever: `open_group` lets all of them meet once.

Bytes are counted for this rank by the rules by which traffic is predicted (`mova_engine.predict.context_traffic`): an
all-to-all sends what goes to other ranks, a shift all of it, an all-reduce of n bytes 2 (p - 1) / p * n (a ring's).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mova_engine.ops.custom_ops import Named

CPU = torch.device("cpu")


class Group(Named):
    """Ranks that exchange tensors; `rank` and `size` within it. A group of one sends nothing and calls nothing.

    device: where the library of the process group wants its tensors. sent: bytes by kind of exchange. calls: exchanges
    that this process has begun, in all groups.
    """

    calls = 0

    def __init__(self, process_group: dist.ProcessGroup | None = None, device: torch.device = CPU) -> None:
        super().__init__()
        self.process_group, self.device = process_group, device
        self.rank = 0 if process_group is None else dist.get_rank(process_group)
        self.size = 1 if process_group is None else dist.get_world_size(process_group)
        self.sent: Counter[str] = Counter()

    def all_to_all(self, x: Tensor, send: Sequence[int], receive: Sequence[int]) -> Callable[[], Tensor]:
        """Begin to send consecutive pieces of a flat x, `send[i]` elements to rank i, and return a function that waits
        for what all ranks sent here, `receive[i]` elements from rank i, in order of ranks.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        own = self._carried(x)
        out = own.new_empty(sum(receive))
        self.sent["all_to_all"] += (x.numel() - send[self.rank]) * x.element_size()
        work = dist.all_to_all_single(out, own, list(receive), list(send), group=self.process_group, async_op=True)

        # What is sent stays until it has left.
        def finish(_own: Tensor = own) -> Tensor:
            work.wait()
            return out.to(x.device)

        return finish

    def shift(self, x: Tensor, receive: int) -> Callable[[], Tensor]:
        """Begin to send a flat x to the next rank, cyclically; return a function that waits for the `receive` elements
        of the rank before.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        own = self._carried(x)
        out = own.new_empty(receive)
        self.sent["shift"] += x.numel() * x.element_size()
        # Not every library carries empty messages; both sides know that there is none.
        operations = []
        if x.numel():
            operations.append(dist.P2POp(dist.isend, own, self._global(self.rank + 1), self.process_group))
        if receive:
            operations.append(dist.P2POp(dist.irecv, out, self._global(self.rank - 1), self.process_group))
        works = dist.batch_isend_irecv(operations) if operations else []

        # What is sent stays until it has left.
        def finish(_own: Tensor = own) -> Tensor:
            for work in works:
                work.wait()
            return out.to(x.device)

        return finish

    def all_reduce(self, x: Tensor, maximum: bool = False) -> Tensor:
        """Replace x by its sum (or maximum) over all ranks; returns x."""
        if self.size > 1:
            Group.calls += 1
            self.sent["all_reduce"] += 2 * (self.size - 1) * x.numel() * x.element_size() // self.size
            own = self._carried(x)
            dist.all_reduce(own, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.process_group)
            if own is not x:
                x.copy_(own)
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Concatenates all ranks' flat tensors in rank order; rank i's has `sizes[i]` elements."""
        return self.all_to_all(x.repeat(self.size), [x.numel()] * self.size, sizes)()

    def neighbours(self, first: Tensor | None, last: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Send `first` to the rank before and `last` to the rank after; return what they sent here, of the same shapes.

        None for edge ranks, whose missing neighbour passes nothing. Others of the group need not call, once all
        have met (`open_group`).
        """
        Group.calls += 1
        operations, received, kept = [], [], []
        for x, step in ((first, -1), (last, 1)):
            if x is None:
                received.append(None)
                continue
            self.sent["neighbours"] += x.numel() * x.element_size()
            kept.append(self._carried(x))
            received.append(torch.empty_like(kept[-1], memory_format=torch.contiguous_format))
            peer = self._global(self.rank + step)
            operations.append(dist.P2POp(dist.isend, kept[-1], peer, self.process_group))
            operations.append(dist.P2POp(dist.irecv, received[-1], peer, self.process_group))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        above, below = (x if y is None else y.to(x.device) for x, y in zip((first, last), received, strict=True))
        return above, below

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """x as rank `source` has it, of the same shape and dtype everywhere; x itself may be overwritten."""
        if self.size == 1:
            return x
        Group.calls += 1
        self.sent["broadcast"] += x.numel() * x.element_size() if self.rank == source else 0
        own = self._carried(x)
        dist.broadcast(own, self._global(source), group=self.process_group)
        return own.to(x.device)

    def send(self, x: Tensor, to: int) -> None:
        """Hand x to rank `to`, which waits for it with `receive`. On the CPU's groups: elsewhere a message outside of
        a batch makes a group of its own.
        """
        dist.send(self._carried(x), self._global(to), group=self.process_group)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source: int) -> Tensor:
        """What rank `source` sends, on the group's device."""
        x = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        dist.recv(x, self._global(source), group=self.process_group)
        return x

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's small, picklable value, by rank. On the CPU's groups."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def told(self, value: Any, source: int) -> Any:
        """The small, picklable value of rank `source`. On the CPU's groups."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, self._global(source), group=self.process_group)
        return values[0]

    def _carried(self, x: Tensor) -> Tensor:
        """x where, and as, the group's library takes it."""
        return x.to(self.device).contiguous()

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.process_group, rank % self.size)


def open_group(process_group: dist.ProcessGroup, device: torch.device) -> Group:
    """A group for tensors on the device `device`, whose ranks have met: all of them call this."""
    group = Group(process_group, device)
    if group.size > 1:
        dist.all_reduce(torch.zeros(1, device=device), group=process_group)
    return group


def open_cpu_group(timeout: timedelta, partition: Sequence[Sequence[int]] | None = None) -> Group:
    """A new gloo group for CPU tensors: of all ranks, or the member of `partition` (lists of global ranks, each rank in
    one list) that contains this rank. Collective: all ranks call it.
    """
    if partition is None:
        return Group(dist.new_group(backend="gloo", timeout=timeout))
    return Group(dist.new_subgroups_by_enumeration(partition, backend="gloo", timeout=timeout)[0])


def total_sent(groups: Sequence[Group]) -> int:
    """Bytes that this rank has sent through all of the groups."""
    return sum(sum(group.sent.values()) for group in groups)


def accumulating_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which partial results are summed: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
