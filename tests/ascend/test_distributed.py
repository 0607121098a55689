"""Four ranks over HCCL: the collectives that training needs, and FSDP2 of a small tower."""

import json
from pathlib import Path

import pytest

from ascend.ranks import launch

RANKS = 4
WORKER = Path(__file__).parent / "distributed_worker.py"
# One group: the ranks run once, not once in each of the runner's processes.
pytestmark = [pytest.mark.npu, pytest.mark.xdist_group("ranks")]


@pytest.fixture(scope="module")
def seen(npu, tmp_path_factory) -> dict:
    """What rank 0 of one run of the worker saw."""
    folder = tmp_path_factory.mktemp("distributed")
    launch(RANKS, folder, WORKER, folder / "seen.json")
    return json.loads((folder / "seen.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_collectives_as_rank_0_sees_them(seen, dtype):
    assert seen[dtype] == {
        "all_reduce SUM": [10, 10],
        "all_reduce AVG": [2.5, 2.5],
        "all_reduce MAX": [4, 4],
        "all_reduce MIN": [1, 1],
        "broadcast": [2, 2],
        "all_gather": [1, 1, 2, 2, 3, 3, 4, 4],
        "reduce_scatter": [6, 10],
        "all_to_all": [0, 1, 10, 11, 20, 21, 30, 31],
        "all_to_all uneven": [0, 1, 1, 2, 2, 2, 3, 3, 3, 3],
        "ring": [4, 4],
    }


def test_groups_of_a_mesh_and_objects(seen):
    assert seen["groups"] == {"mesh shard": [4], "mesh context": [3], "objects": [0, 1, 2, 3]}


def test_fsdp2_trains_as_one_process_does(seen):
    for name in ("losses", "norms"):
        assert seen["fsdp2"][name] == pytest.approx(seen["single"][name], rel=1e-5)
    assert seen["single"]["losses"][-1] < 0.5 * seen["single"]["losses"][0]


def test_fsdp2_in_bfloat16_stays_close(seen):
    assert seen["fsdp2-bfloat16"]["losses"] == pytest.approx(seen["single"]["losses"], rel=0.01)


def test_gradients_are_reduced_when_the_backward_has_ended(seen):
    """Users' replicated runs became NaN where HCCL did not wait for it."""
    assert seen["reduction"] == {"calls": ["wait", "all_reduce"], "sums": [[3], [3, 3]]}


def test_fused_adamw_refuses_sharded_parameters(seen):
    assert "does not take DTensor parameters" in seen["refusal"] and "AdamW(fused=True)" in seen["refusal"]
