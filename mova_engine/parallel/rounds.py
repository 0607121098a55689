"""Batches for ranks that share clips: each is made once, by one of them, and broadcast when its turn comes.

All ranks of a context-parallel group need the same batch, and they meet in every layer: if one encoded it while the
others trained, all would wait for it. So in rounds: of the next `size` batches every rank makes a different one at the
same time, and then they are used one after the other.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist


class Rounds:
    """The ranks of `group` (a CPU's) that share clips."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.rank, self.size = group, dist.get_rank(group), dist.get_world_size(group)

    def own(self, wanted: Iterator[Any]) -> Iterator[Any]:
        """Of what the ranks together want next, again and again, this rank's: the one of its number."""
        for index, each in enumerate(wanted):
            if index % self.size == self.rank:
                yield each

    def shared(self, made: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """All ranks' batches in the order of what was wanted; `made` are this rank's own, in its order. Tensors on the
        CPU, anything else small and picklable.
        """
        for own in made:
            for turn in range(self.size):
                yield self.broadcast(own if turn == self.rank else None, turn)

    def broadcast(self, batch: dict[str, Any] | None, turn: int) -> dict[str, Any]:
        """The batch of the rank whose turn it is, on all ranks; the others give None."""
        source = dist.get_global_rank(self.group, turn)
        told = [None if batch is None else {name: _outline(value) for name, value in batch.items()}]
        dist.broadcast_object_list(told, source, group=self.group)
        received = {}
        for name, value in told[0].items():
            if isinstance(value, torch.Tensor):
                value = torch.empty(value.shape, dtype=value.dtype) if batch is None else batch[name].contiguous()
                dist.broadcast(value, source, group=self.group)
            received[name] = value
        return received


def _outline(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
