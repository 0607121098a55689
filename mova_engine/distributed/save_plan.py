"""A planner for DCP (torch.distributed.checkpoint) that assigns the rows of a checkpoint to ranks, for thousands of
ranks and weights.

DCP's default planner sends one object per weight and rank to the coordinator: for 1,024 ranks 19 million objects, some
gigabytes and a quarter of an hour. Here weights whose rows are divided alike form a *kind*, and there are few kinds.
Each rank sends the row range that it holds for each kind, and for each weight the number of its kind.
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
    """The rows of all weights that a rank holds; weights are in order of their names.

    digest: hash of all names, unsharded shapes and dtypes; must be equal in all ranks. kinds: int64 [k, 3], for each
    kind the number of rows of the unsharded weight, the first row that this rank holds, and how many. kind_of: int [n],
    for each weight its row in `kinds`.
    """

    digest: str
    kinds: np.ndarray
    kind_of: np.ndarray


class RowsPlanner(SavePlanner):
    """Plans the writing of `LocalShard`s, which together must hold all rows. One of the ranks that hold a row writes
    it.
    """

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
        """In the coordinator: decide for each rank of which weights it writes its rows. Raises as `shared_out` does."""
        chosen = shared_out([plan.planner_data for plan in all_plans], list(self.pieces))
        return [SavePlan([], planner_data=own) for own in chosen], Metadata({})

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        own: Sequence[bool] = new_plan.planner_data
        return SavePlan([_item(*each) for each, mine in zip(self.pieces.items(), own, strict=True) if mine])

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self.pieces[write_item.index.fqn].tensor


def outline_of(pieces: Mapping[str, LocalShard]) -> Outline:
    """The outline of one rank's pieces, which must be in order of their names."""
    text = "\n".join(f"{name} {piece.shape} {piece.tensor.dtype}" for name, piece in pieces.items())
    rows = [(piece.shape[0], piece.first, len(piece.tensor)) if piece.shape else (1, 0, 1) for piece in pieces.values()]
    kinds, kind_of = np.unique(np.array(rows, np.int64).reshape(-1, 3), axis=0, return_inverse=True)
    narrow = np.min_scalar_type(max(len(kinds) - 1, 0))
    return Outline(hashlib.sha256(text.encode()).hexdigest(), kinds, kind_of.reshape(-1).astype(narrow))


def shared_out(outlines: Sequence[Outline], names: Sequence[str]) -> list[np.ndarray]:
    """For each rank a bool [n]: whether it writes its rows of weight i. names: of the weights, for errors.

    Ranks that hold the same rows take turns: each writes them for some of the weights. Raises MovaError if a rank's
    weights differ from rank 0's, and if rows of a weight are missing or overlap.
    """
    other = next((rank for rank, each in enumerate(outlines) if each.digest != outlines[0].digest), None)
    if other is not None:
        raise MovaError(f"rank {other} would save other weights, or of other shapes, than rank 0")
    chosen = [np.zeros(len(names), bool) for _ in outlines]
    # [n, ranks]: each weight's kind in each rank; weights with equal rows of this table are divided alike.
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
    """For each row range of a weight, in order, the ranks that hold it; or an error as text. rows: for each rank its
    line of `Outline.kinds`.
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
