"""Under the guard, which refuses what NCCL and HCCL refuse: deliberate violations, and what it has found."""

import re

import pytest
from distributed.runs import run_shared
from distributed.sampling import save
from distributed.saved import losses
from distributed.world import World


@pytest.fixture(scope="module")
def guarded():
    """`guarded()`: a World of two processes under the guard, started anew where an error ended it."""
    running: list[World] = []

    def get() -> World:
        if not running or not running[-1].alive:
            running.append(World(2, "standin"))
        return running[-1]

    yield get
    for world in running:
        world.close()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("host tensor on the device's group", {"all": "all_reduce: No backend type associated with device type cpu"}),
        ("device tensor on the host's group", {"all": "No backend type associated with device type"}),
        ("object on the device's group", {"all": "No backend type associated with device type cpu"}),
        ("first message of some", {0: "send is this group's first exchange", 1: "send is this group's first exchange"}),
        ("rank missing", {0: r"ranks \[1\] did not come to all_reduce"}),
        ("another exchange", {"all": "not the same in all ranks: rank 0: broadcast of 2 .*; rank 1: all_reduce of 2"}),
        ("another size", {"all": "not the same in all ranks: rank 0: all_reduce of 2 .*; rank 1: all_reduce of 3"}),
        ("other splits", {"all": r"rank 1: all_to_all .* sends \[2, 2\], receives \[1, 1\]"}),
        ("another message", {1: "rank 0 sends 3 torch.float32, rank 1 waits for 2 torch.float32"}),
        ("not contiguous", {"all": "all_reduce: Tensors must be contiguous"}),
        ("sum in float64", {"all": "torch.float64 is not among what NCCL and HCCL add up"}),
        ("devices mixed", {"all": "Expected all tensors to be on the same device"}),
    ],
)
def test_a_violation_is_refused_and_named(guarded, what, said):
    for rank, found in enumerate(guarded().run("violated", what=what)):
        expected = said.get("all", said.get(rank))
        assert found == "" if expected is None else re.search(expected, found), (rank, found)


@pytest.mark.long
def test_the_norm_of_offloaded_gradients_goes_over_the_devices_group(guarded):
    for good, broken in guarded().run("offloaded_step"):
        assert good == "norm on cpu" and "No backend type associated with device type cpu" in broken


def test_conditions_made_on_the_device_go_over_the_hosts_group(guarded):
    expected = "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]] on cpu"
    assert guarded().run("conditions_handed_on") == [expected] * 2
    first, *_ = guarded().run("conditions_handed_on", broken=True)
    assert "No backend type associated with device type" in first


@pytest.mark.slow
def test_offloaded_weights_train_as_others_do(guarded, clips, tmp_path):
    """The trainer's whole step, validation and checkpoints included."""
    settings = {"steps": 1, "batch": 2}
    assert run_shared(clips=str(clips), out=str(tmp_path / "alone"), **settings)[0] == 0
    parallel = {"shard": True, "context_parallel": 2}
    memory = {"optimizer": "host"}
    found = guarded().train(clips, tmp_path / "run", parallel=parallel, memory=memory, **settings)
    assert [status for status, _ in found] == [0, 0], found
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)


@pytest.mark.long
def test_clips_are_one_processs(guarded, tmp_path):
    """Words and pictures encoded in different processes, rows of pictures exchanged, clips sent to the first."""
    save(tmp_path / "model")
    arguments = {"cfg": 1, "context_parallel": 2, "shard": True, "count": 1, "batch": 1}
    (given, ((levels, sound),), _), *others = guarded().run(
        "errors_of_clips", checkpoint=str(tmp_path / "model"), **arguments
    )
    assert given == 1 and levels <= 1 and sound <= 1e-4 and [each for each, *_ in others] == [0] * 1
