"""Runs with buckets by two processes: the losses of one process, gone on from in any number of them."""

from pathlib import Path

import pytest
from distributed.runs import run_shared
from distributed.saved import losses, progress

from mova_engine.data.synthetic.bounce import Scene, generate

BUCKETS = {"sizes": ("64x48", "48x64"), "frames": (33, 49)}
STEP = {"global_batch_size": 4, "buckets": BUCKETS}


@pytest.fixture(scope="module")
def balls(tmp_path_factory) -> Path:
    """Clips of two shapes and two lengths."""
    folder = tmp_path_factory.mktemp("balls")
    scenes = [Scene(width, height, frames) for width, height in ((64, 48), (48, 64)) for frames in (33, 49)]
    # Each is used for one round of the six held-out pairs.
    generate(folder, 24, seed=3, split="heldout", scenes=scenes)
    return folder


@pytest.mark.parametrize("parallel", [{"shard": False, "context_parallel": 1}, {"shard": True, "context_parallel": 2}])
def test_two_processes_train_as_one_does_and_go_on_from_each_other(balls, worlds, tmp_path, parallel):
    alone, both = tmp_path / "alone", tmp_path / "both"
    micro = 4 // (2 // parallel["context_parallel"])
    status, said = run_shared(clips=str(balls), out=str(alone), steps=6, batch=4, **STEP)
    assert status == 0 and "24 clips in buckets; 4 of one bucket a step" in said
    # Three steps by two processes, then three by one.
    found = worlds(2).train(balls, both, steps=3, every=3, batch=micro, parallel=parallel, **STEP)
    assert [status for status, _ in found] == [0, 0], found
    assert progress(both / "checkpoints" / "step-000003")["loader"]["position"] == 12
    status, said = run_shared(clips=str(balls), out=str(both), steps=6, batch=4, **STEP)
    assert status == 0 and "going on from" in said
    assert losses(both) == pytest.approx(losses(alone), rel=1e-4)
