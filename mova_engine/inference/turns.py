"""Which process makes which clips, when several groups of processes make clips side by side."""

from collections.abc import Sequence

from mova_engine.inference.requests import Request

# A batch for each of the groups; the last turn may have too few.
Turn = list[Sequence[Request]]


def batched(requests: Sequence[Request], size: int) -> list[Sequence[Request]]:
    """Split requests into batches of `size`; the last one may be smaller."""
    return [requests[start : start + size] for start in range(0, len(requests), size)]


def turns_of(requests: Sequence[Request], batch: int, groups: int) -> list[Turn]:
    """Divide requests into turns, in each of which every group makes a batch."""
    batches = batched(requests, batch)
    return [batches[start : start + groups] for start in range(0, len(batches), groups)]


def part_of(turn: Turn, group: int, sharded: bool) -> Sequence[Request]:
    """The batch of a turn that a group works on, empty where there is none.

    FSDP gathers weights from all ranks, so a group without clips left runs another group's batch, and drops it.
    """
    return turn[group] if group < len(turn) else turn[-1] if sharded else ()
