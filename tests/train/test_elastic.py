"""Runs that go on with another number of processes."""

import pytest

from mova_engine.config.recipes import load_config
from mova_engine.distributed.processes import Launch
from mova_engine.errors import MovaError
from mova_engine.train.assembly import join_processes
from mova_engine.train.elastic import other_step

SHARED = {"context_parallel": 2, "shard": True}


def test_a_restart_that_fits_no_mesh_names_the_numbers_of_processes_that_do(monkeypatch):
    config = load_config("nano", device="cpu", parallel=SHARED, loader={"batch": 1}, global_batch_size=2)
    with pytest.raises(MovaError) as refused:
        join_processes(config, Launch(0, 0, 3))
    assert str(refused.value).startswith("mesh: context_parallel 2 does not divide the 3 processes")
    assert "With these settings" not in str(refused.value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    for world, numbers in ((3, "2 or 4"), (6, "4"), (1, "2")):
        with pytest.raises(MovaError, match=rf"\. With these settings {numbers} processes fit: torchrun's --nnodes"):
            join_processes(config, Launch(0, 0, world))


def test_other_clips_a_step_are_said():
    assert other_step(4, 4) is None and other_step(None, 4) is None
    assert "a step takes 2 clips, before it took 4" in str(other_step(4, 2))
    assert "--global-batch-size 4" in str(other_step(4, 2))
