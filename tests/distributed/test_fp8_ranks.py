"""fp8 products on divided weights: one process's, by micro-batches of the same clips, and decided alike everywhere."""

import json

import pytest
from distributed.runs import run_shared
from distributed.saved import losses, tensors

FP8 = {"products": "emulated", "slack": 0.038, "check_every": 2}


def layers(run):
    return json.loads((run / "fp8.json").read_text())["layers"]


@pytest.mark.parametrize(
    ("world", "parallel", "memory"),
    [
        pytest.param(2, {"shard": True}, {}, id="divided"),
        pytest.param(2, {"shard": True}, {"checkpointing": "full"}, id="divided, recomputed"),
        pytest.param(2, {}, {}, id="whole"),
        pytest.param(4, {"shard": True, "replicate": 2}, {}, id="copies", marks=pytest.mark.slow),
    ],
)
def test_processes_train_as_one_does_that_accumulates(worlds, clips, tmp_path, world, parallel, memory):
    """A weight's gradient has scales by the tokens that it is summed over: those of a clip in either case."""
    settings = {"steps": 3, "batch": 1, "global_batch_size": world, "fp8": FP8, "memory": memory}
    status, said = run_shared(clips=str(clips), out=str(tmp_path / "alone"), **settings)
    together = worlds(world).run(
        "run_shared", clips=str(clips), out=str(tmp_path / "two"), parallel=parallel, **settings
    )
    assert status == 0 and [status for status, _ in together] == [0] * world
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    ours, theirs = (tensors(tmp_path / run / "checkpoints" / "step-000003") for run in ("two", "alone"))
    assert ours.keys() == theirs.keys()
    assert max(float((x - theirs[name]).abs().max()) for name, x in ours.items()) < 1e-4
    found, expected = layers(tmp_path / "two"), layers(tmp_path / "alone")
    kept = {name for name, entry in expected.items() if entry["in"] == "float32"}
    assert 0 < len(kept) < len(expected) and kept == {name for name, x in found.items() if x["in"] == "float32"}
    assert "fp8 compared at step 3" in said and "fp8 compared at step 3" in together[0][1]


def test_processes_that_share_a_clip_decide_alike_and_go_on_to_the_bit(worlds, clips, tmp_path):
    """Each has other tokens, whose deviations differ: the largest counts."""
    settings = {"steps": 3, "batch": 2, "every": 2, "fp8": FP8, "parallel": {"shard": True, "context_parallel": 2}}
    whole = worlds(2).run("run_shared", clips=str(clips), out=str(tmp_path / "whole"), **settings)
    assert [status for status, _ in whole] == [0, 0]
    middle = tmp_path / "whole" / "checkpoints" / "step-000002"
    again = worlds(2).run("run_shared", clips=str(clips), out=str(tmp_path / "again"), resume=str(middle), **settings)
    assert [status for status, _ in again] == [0, 0]
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")[2:]
    assert layers(tmp_path / "again") == layers(tmp_path / "whole")
