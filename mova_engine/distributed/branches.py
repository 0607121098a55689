"""CFG-parallel guidance: branch i of a step runs on rank i mod n, then the velocities are all-gathered."""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mova_engine.distributed.collectives import Group

Branch = TypeVar("Branch")


def own_branches(branches: Sequence[Branch], group: Group) -> tuple[Branch, ...]:
    """Return the branches that this rank evaluates: i, i + n, i + 2n, ... for rank i of n."""
    return tuple(branches[group.rank :: group.size])


def all_branches(
    branches: Sequence[Branch], own: dict[Branch, tuple[Tensor, ...]], group: Group
) -> dict[Branch, tuple[Tensor, ...]]:
    """All-gather the results of all branches: bit-identical on all ranks.

    own: branch -> tensors, for this rank's branches. The tensors have the same shapes and dtypes in every branch.
    """
    if group.size == 1:
        return own
    flat = [x.flatten() for branch in own_branches(branches, group) for x in own[branch]]
    example = next(iter(own.values()))
    of_one = sum(x.numel() for x in example)
    sizes = [of_one * len(branches[rank :: group.size]) for rank in range(group.size)]
    received = group.all_gather(torch.cat(flat), sizes).split([x.numel() for x in example] * len(branches))
    order = [branch for rank in range(group.size) for branch in branches[rank :: group.size]]
    found = {}
    for index, branch in enumerate(order):
        parts = received[index * len(example) : (index + 1) * len(example)]
        found[branch] = tuple(part.view(x.shape) for part, x in zip(parts, example, strict=True))
    return found
