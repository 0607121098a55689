"""Muon by several processes: steps, traffic and checkpoints are one process's."""

import pytest
from distributed.runs import resaved, run_shared
from distributed.saved import different, losses, tensors

MUON = {"optim": {"name": "muon"}}


@pytest.mark.parametrize(("world", "every"), [(2, 1), (4, 2), pytest.param(8, 1, marks=pytest.mark.slow)])
def test_rows_move_as_whole_matrices_and_send_what_the_formula_says(worlds, world, every):
    """Four steps of size 0.1: in float32 sums over other orders differ in the last digits."""
    for error, sent, expected in worlds(world).run("muon_rows", every=every):
        assert error < 2e-5 and sent == expected > 0


@pytest.mark.parametrize("memory", ["device", "host"])
def test_a_run_of_two_is_one_processs_and_its_checkpoint_goes_there_and_back(clips, worlds, tmp_path, memory):
    settings = {"steps": 3, "batch": 4, "every": 2, **MUON}
    status, _ = run_shared(clips=str(clips), out=str(tmp_path / "alone"), **settings)
    found = worlds(2).train(clips, tmp_path / "two", memory={"optimizer": memory}, **settings)
    assert status == 0 and [status for status, _ in found] == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    ours, theirs = (tensors(tmp_path / run / "checkpoints" / "step-000003") for run in ("two", "alone"))
    assert ours.keys() == theirs.keys() and any(name.endswith(":momentum") for name in ours)
    assert max(float((x - theirs[name]).abs().max()) for name, x in ours.items()) < 1e-4
    if memory == "host":
        return
    source = tmp_path / "two" / "checkpoints" / "step-000002"
    resaved(str(source), clips=str(clips), out=str(tmp_path / "one"), batch=4, **MUON)
    assert different(tmp_path / "one" / "checkpoints" / source.name, source) == []
    again = worlds(2).train(clips, tmp_path / "again", resume=str(source), **settings)
    assert [status for status, _ in again] == [0, 0]
    assert losses(tmp_path / "again") == losses(tmp_path / "two")[2:]
