"""The division of clips among groups of processes that make different clips at the same time."""

from collections.abc import Sequence

from mova_engine.inference.requests import Request

# One batch for each group; the last turn may have fewer batches than there are groups.
Turn = list[Sequence[Request]]


def batched(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """Split requests into batches of `size`; the last one may be smaller."""
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def turns_of(requests: Sequence[Request], batch: int, groups: int) -> list[Turn]:
    """Divide requests into turns. In each turn every group makes one batch."""
    batches = batched(requests, batch)
    return [batches[start : start + groups] for start in range(0, len(batches), groups)]


def part_of(turn: Turn, group: int, sharded: bool) -> Sequence[Request]:
    """The batch of a turn that a group makes; empty if there is none for it.

    sharded: FSDP gathers weights from all ranks, so a group without clips left repeats another group's batch and drops
    the result.
    """
    return turn[group] if group < len(turn) else turn[-1] if sharded else ()
