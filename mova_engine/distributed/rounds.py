"""Round-robin encoding in a group of ranks that share clips: rank i produces batch i of a round, then broadcasts it.

All ranks of the group need the same batch. If one rank encoded every batch, the others would wait for it. Instead each
rank encodes a different one of the next `size` batches at the same time; then the batches are used in order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mova_engine.distributed.collectives import Group


class Rounds:
    """The round-robin exchange of batches in the CPU group `group`. All tensors that it returns are on the CPU."""

    def __init__(self, group: Group) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size

    def own(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Yield the batches that this rank encodes: those whose index modulo the group's size is its rank."""
        for index, each in enumerate(batches):
            if index % self.size == self.rank:
                yield each

    def shared(self, made: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the batches of all ranks in their original order.

        made: the batches that this rank encoded, in the order of `own`. A value is a tensor, or small and picklable.
        """
        for own in made:
            for turn in range(self.size):
                yield self.broadcast(own if turn == self.rank else None, turn)

    def collected(self, own: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor] | None:
        """Gather tensors of one dtype: returns the tensors of all ranks in rank 0 of the group, None in the others.

        shapes: the shape of each rank's tensor, by rank.
        """
        if self.rank:
            if own.numel():
                self.group.send(own, 0)
            return None
        parts = [own.cpu()]
        for rank, shape in enumerate(shapes[1:], 1):
            nothing = torch.empty(tuple(shape), dtype=own.dtype)
            parts.append(self.group.receive(shape, own.dtype, rank) if math.prod(shape) else nothing)
        return parts

    def broadcast(self, batch: dict[str, Any] | None, turn: int) -> dict[str, Any]:
        """Return the batch of rank `turn` on all ranks. batch: the batch in rank `turn`, None in the others."""
        outline = None if batch is None else {name: _outline(value) for name, value in batch.items()}
        received = {}
        for name, value in self.group.broadcast_object(outline, turn).items():
            if isinstance(value, torch.Tensor):
                value = torch.empty(value.shape, dtype=value.dtype) if batch is None else batch[name].cpu()
                value = self.group.broadcast(value, turn)
            received[name] = value
        return received


def _outline(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
