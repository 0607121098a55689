"""Who writes which rows of a checkpoint, as DCP's planner: small enough for a thousand ranks and ten thousand weights.

DCP's own planner gathers an object for each weight of each rank in the coordinator: for 1,024 ranks 19 million, some
gigabytes and a quarter of an hour. Weights whose rows are divided alike are one thing to plan, and there are few kinds
of them: a rank sends the kinds of rows that it has and, for each weight, the number of its kind.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import SavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from mova_engine.distributed.fsdp import LocalShard
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class Outline:
    """What a rank has of the weights, in order of their names.

    digest: of all names and whole shapes, the same in all ranks. kinds [k, 3]: rows of a whole weight, the first of
    this rank's, how many it has. kind_of [n]: of each weight its row in `kinds`.
    """

    digest: str
    kinds: np.ndarray
    kind_of: np.ndarray


class RowsPlanner(SavePlanner):
    """Plans `LocalShard`s, rows of whole weights: together all of them. What several ranks have one writes."""

    def set_up_planner(
        self,
        state_dict: Mapping[str, LocalShard],
        storage_meta: StorageMeta | None = None,
        is_coordinator: bool = False,
    ) -> None:
        self.pieces = dict(sorted(state_dict.items()))

    def create_local_plan(self) -> SavePlan:
        return SavePlan([], planner_data=outline_of(self.pieces))

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """In the coordinator: to each rank which of its weights it writes. MovaError as of `shared_out`."""
        chosen = shared_out([plan.planner_data for plan in all_plans], list(self.pieces))
        return [SavePlan([], planner_data=own) for own in chosen], Metadata({})

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        own: Sequence[bool] = new_plan.planner_data
        return SavePlan([_item(*each) for each, mine in zip(self.pieces.items(), own, strict=True) if mine])

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.pieces[write_item.index.fqn].tensor


def outline_of(pieces: Mapping[str, LocalShard]) -> Outline:
    """Of one rank's pieces, in order of their names."""
    text = "\n".join(f"{name} {piece.shape} {piece.tensor.dtype}" for name, piece in pieces.items())
    rows = [(piece.shape[0], piece.first, len(piece.tensor)) if piece.shape else (1, 0, 1) for piece in pieces.values()]
    kinds, kind_of = np.unique(np.array(rows, np.int64).reshape(-1, 3), axis=0, return_inverse=True)
    narrow = np.min_scalar_type(max(len(kinds) - 1, 0))
    return Outline(hashlib.sha256(text.encode()).hexdigest(), kinds, kind_of.reshape(-1).astype(narrow))


def shared_out(outlines: Sequence[Outline], names: Sequence[str]) -> list[np.ndarray]:
    """For each rank, bool [n]: whether it writes what it has of a weight. names: of the weights.

    Of ranks that have the same rows each writes some weights' in turn. MovaError where ranks have other weights than
    the first, and where rows of a weight are missing or overlap.
    """
    other = next((rank for rank, each in enumerate(outlines) if each.digest != outlines[0].digest), None)
    if other is not None:
        raise MovaError(f"rank {other} would save other weights, or of other shapes, than rank 0")
    chosen = [np.zeros(len(names), bool) for _ in outlines]
    # [n, ranks]: a weight's kind in each rank; weights with the same line are divided alike.
    kinds = np.stack([each.kind_of.astype(np.uint32) for each in outlines], axis=1)
    alike: dict[bytes, list[int]] = {}
    for weight in range(len(names)):
        alike.setdefault(kinds[weight].tobytes(), []).append(weight)
    for weights in map(np.array, alike.values()):
        holders = _holders([each.kinds[kind] for each, kind in zip(outlines, kinds[weights[0]], strict=True)])
        if isinstance(holders, str):
            raise MovaError(f"{holders} of {names[weights[0]]}, and of {len(weights) - 1} more divided like it")
        for ranks in holders:
            for turn, rank in enumerate(ranks):
                chosen[rank][weights[turn :: len(ranks)]] = True
    return chosen


def _holders(rows: Sequence[Any]) -> list[list[int]] | str:
    """The ranks that have the same rows of a weight, in order of rows; or what is wrong, in words. rows: by rank, as of
    `Outline.kinds`.
    """
    total, held = int(rows[0][0]), {}
    for rank, (_, first, count) in enumerate(rows):
        if count:
            held.setdefault((int(first), int(count)), []).append(rank)
    end = 0
    for first, count in sorted(held):
        if first < end:
            return f"row {first} is saved twice"
        if first > end:
            return f"row {end} is saved by no rank"
        end = first + count
    return [held[rows] for rows in sorted(held)] if end == total else f"row {end} is saved by no rank"


def _item(key: str, piece: LocalShard) -> WriteItem:
    shape, own = torch.Size(piece.shape), piece.tensor.shape
    offsets = torch.Size([piece.first, *[0] * (len(shape) - 1)] if shape else [])
    return WriteItem(
        MetadataIndex(key, offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(offsets, own), TensorProperties.create_from_tensor(piece.tensor), shape
        ),
    )
