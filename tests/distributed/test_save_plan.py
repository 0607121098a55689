"""Who writes which rows of a checkpoint: all of them, once, whoever holds them."""

import pickle

import numpy as np
import pytest
import torch

from mova_engine.distributed.fsdp import LocalShard, rows_of
from mova_engine.distributed.save_plan import RowsPlanner, outline_of, shared_out
from mova_engine.errors import MovaError

SHAPES = {"a": (10, 2), "b": (3,), "c": (10, 4), "d": (1, 6), "step": ()}


def _pieces(ranks, rank, shapes=SHAPES):
    found = {}
    for name, shape in shapes.items():
        first, count = rows_of(shape[0], ranks, rank) if shape else (0, 0)
        tensor = torch.arange(count * int(np.prod(shape[1:]))).reshape(count, *shape[1:]) if shape else torch.tensor(7)
        found[name] = LocalShard(tensor, shape, first)
    return found


def _plans(ranks, copies=1):
    """The plans of all ranks of so many copies, carried out as `dcp.save` does."""
    planners = []
    for rank in range(ranks * copies):
        planner = RowsPlanner()
        planner.set_up_planner(_pieces(ranks, rank % ranks), is_coordinator=rank == 0)
        planners.append(planner)
    plans, _ = planners[0].create_global_plan([planner.create_local_plan() for planner in planners])
    return [planner.finish_plan(plan) for planner, plan in zip(planners, plans, strict=True)], planners


@pytest.mark.parametrize("ranks, copies", [(1, 1), (4, 1), (4, 3), (16, 2)])
def test_each_row_is_written_once(ranks, copies):
    plans, planners = _plans(ranks, copies)
    written = {name: [] for name in SHAPES}
    for plan, planner in zip(plans, planners, strict=True):
        for item in plan.items:
            tensor = planner.resolve_data(item)
            first = item.index.offset[0] if tensor.ndim else 0
            written[item.index.fqn] += range(first, first + (len(tensor) if tensor.ndim else 1))
    for name, shape in SHAPES.items():
        assert sorted(written[name]) == list(range(shape[0] if shape else 1)), name


def test_copies_share_the_writing():
    plans, _ = _plans(4, copies=2)
    writers = {rank for rank, plan in enumerate(plans) if plan.items}
    assert any(rank < 4 for rank in writers) and any(rank >= 4 for rank in writers)


@pytest.mark.parametrize(
    "rank, first, count, said",
    [
        (1, 3, 2, "row 2 is saved by no rank of a"),
        (1, 1, 4, "row 1 is saved twice of a"),
        (4, 8, 1, "row 9 is saved by no rank of a"),
    ],
)
def test_rows_that_do_not_add_up_are_refused(rank, first, count, said):
    every = [_pieces(5, each) for each in range(5)]
    every[rank]["a"] = LocalShard(torch.zeros(count, 2, dtype=torch.int64), (10, 2), first)
    with pytest.raises(MovaError, match=said):
        shared_out([outline_of(pieces) for pieces in every], list(SHAPES))


def test_other_weights_are_refused():
    others = _pieces(2, 1, SHAPES | {"a": (10, 3)})
    with pytest.raises(MovaError, match="rank 1 would save other weights, or of other shapes, than rank 0"):
        shared_out([outline_of(_pieces(2, 0)), outline_of(others)], list(SHAPES))


def test_a_plan_is_small():
    """What a rank sends grows by a byte with each weight."""

    def size(count):
        return len(pickle.dumps(outline_of(_pieces(4, 1, {f"w{i:05}": (64, 2) for i in range(count)}))))

    assert size(2000) - size(1000) < 1100
