"""Round-robin encoding in a context-parallel group: rank i produces batch i of a round, then broadcasts it.

All ranks of the group need the same batch and synchronise in every layer, so a single rank that encodes would stall the
others. Instead each rank encodes a different one of the next `size` batches at the same time; then the batches are used
in order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from mova_engine.distributed.collectives import Group


class Rounds:
    """The ranks of `group` (a CPU's) that share clips. Tensors come out on the CPU, wherever they were made."""

    def __init__(self, group: Group) -> None:
        self.group, self.rank, self.size = group, group.rank, group.size

    def own(self, wanted: Iterator[Any]) -> Iterator[Any]:
        """This rank's share of the wanted batches: those whose index is its rank modulo the group's size."""
        for index, each in enumerate(wanted):
            if index % self.size == self.rank:
                yield each

    def shared(self, made: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """All ranks' batches in the order of what was wanted; `made` are this rank's own, in its order: tensors, and
        anything else that is small and picklable.
        """
        for own in made:
            for turn in range(self.size):
                yield self.broadcast(own if turn == self.rank else None, turn)

    def collected(self, own: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor] | None:
        """All ranks' tensors of one dtype in the group's first rank, None elsewhere; shapes: by rank."""
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
        """The batch of rank `turn`, in all of them; None in the others."""
        outline = None if batch is None else {name: _outline(value) for name, value in batch.items()}
        received = {}
        for name, value in self.group.told(outline, turn).items():
            if isinstance(value, torch.Tensor):
                value = torch.empty(value.shape, dtype=value.dtype) if batch is None else batch[name].cpu()
                value = self.group.broadcast(value, turn)
            received[name] = value
        return received


def _outline(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value
