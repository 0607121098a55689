"""A process group with the exchanges that context parallelism and sampling are made of, and a count of what they send.

Bytes are counted for this rank by the rules by which traffic is predicted (`mova_engine.parallel.traffic`): an
all-to-all sends what goes to other ranks, a shift all of it, an all-reduce of n bytes 2 (p - 1) / p * n (a ring's).
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Group:
    """Ranks that exchange tensors; `rank` and `size` within it. A group of one sends nothing and calls nothing.

    sent: bytes by kind of exchange. calls: exchanges that this process has begun, in all groups.
    """

    calls = 0

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.process_group = process_group
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
        out = x.new_empty(sum(receive))
        self.sent["all_to_all"] += (x.numel() - send[self.rank]) * x.element_size()
        work = dist.all_to_all_single(
            out, x.contiguous(), list(receive), list(send), group=self.process_group, async_op=True
        )

        def finish() -> Tensor:
            work.wait()
            return out

        return finish

    def shift(self, x: Tensor, receive: int) -> Callable[[], Tensor]:
        """Begin to send a flat x to the next rank, cyclically; return a function that waits for the `receive` elements
        of the rank before.
        """
        if self.size == 1:
            return lambda: x
        Group.calls += 1
        out, x = x.new_empty(receive), x.contiguous()
        self.sent["shift"] += x.numel() * x.element_size()
        # Not every library carries empty messages; both sides know that there is none.
        operations = []
        if x.numel():
            operations.append(dist.P2POp(dist.isend, x, self._global(self.rank + 1), self.process_group))
        if receive:
            operations.append(dist.P2POp(dist.irecv, out, self._global(self.rank - 1), self.process_group))
        works = dist.batch_isend_irecv(operations) if operations else []

        # x stays until it has left.
        def finish(_x: Tensor = x) -> Tensor:
            for work in works:
                work.wait()
            return out

        return finish

    def all_reduce(self, x: Tensor, maximum: bool = False) -> Tensor:
        """Replace x by its sum (or maximum) over all ranks; returns x."""
        if self.size > 1:
            Group.calls += 1
            self.sent["all_reduce"] += 2 * (self.size - 1) * x.numel() * x.element_size() // self.size
            dist.all_reduce(x, dist.ReduceOp.MAX if maximum else dist.ReduceOp.SUM, group=self.process_group)
        return x

    def all_gather(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """All ranks' flat tensors, rank i's of `sizes[i]` elements, one after the other."""
        everyone = x.repeat(self.size)
        return self.all_to_all(everyone, [x.numel()] * self.size, sizes)()

    def neighbours(self, first: Tensor | None, last: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Send `first` to the rank before and `last` to the rank after; return what they sent here, of the same shapes.

        None: there is nobody on that side, who then has None on this one. Others of the group need not call.
        """
        Group.calls += 1
        operations, received = [], []
        for x, step in ((first, -1), (last, 1)):
            received.append(None if x is None else torch.empty_like(x, memory_format=torch.contiguous_format))
            if x is not None:
                self.sent["neighbours"] += x.numel() * x.element_size()
                peer = self._global(self.rank + step)
                operations.append(dist.P2POp(dist.isend, x.contiguous(), peer, self.process_group))
                operations.append(dist.P2POp(dist.irecv, received[-1], peer, self.process_group))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        return received[0], received[1]

    def broadcast(self, x: Tensor) -> Tensor:
        """x as the first rank has it; x itself may be overwritten."""
        if self.size > 1:
            Group.calls += 1
            self.sent["broadcast"] += x.numel() * x.element_size() if self.rank == 0 else 0
            x = x.contiguous()
            dist.broadcast(x, self._global(0), group=self.process_group)
        return x

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.process_group, rank % self.size)


def total_sent(groups: Sequence[Group]) -> int:
    """Bytes that this rank has sent through all of the groups."""
    return sum(sum(group.sent.values()) for group in groups)


def lengths_of(total: int, parts: int) -> tuple[int, ...]:
    """`total` tokens over `parts` ranks as evenly as whole tokens allow: the first ranks have one more."""
    return tuple(total // parts + (rank < total % parts) for rank in range(parts))


def accumulating_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which partial results are summed: float32, float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
