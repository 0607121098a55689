"""Meshes, refusals that propose, and the launcher's environment."""

import pytest
from distributed.world import World

from mova_engine.backend import get_backend
from mova_engine.config.mesh import MeshShape, choose_mesh, lengths_of
from mova_engine.distributed.processes import Launch, read_launch, start_processes
from mova_engine.errors import MovaError


@pytest.mark.parametrize(
    ("world", "context_parallel", "ring", "ulysses", "shard"),
    [(1, 1, 1, 1, 1), (8, 4, 1, 4, 2), (16, 16, 2, 8, 1), (6, 3, 3, 1, 2), (1024, 8, 1, 8, 128), (12, 12, 3, 4, 1)],
)
def test_ulysses_takes_what_divides_the_heads(world, context_parallel, ring, ulysses, shard):
    found = choose_mesh(world, 40, context_parallel=context_parallel)
    assert found == MeshShape(ring=ring, ulysses=ulysses, dp_shard=shard)
    assert found.world == world and found.context_parallel == context_parallel


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"context_parallel": 3}, r"context_parallel 3 does not divide the 8 processes. Nearest that fit: "),
        ({"context_parallel": 8, "ulysses": 3}, "ulysses 3 does not divide context_parallel 8"),
        ({"context_parallel": 16, "ulysses": 16}, "ulysses 16 does not divide the video tower's 40 heads"),
        ({"context_parallel": 4, "dp_replicate": 4}, "dp_replicate 4 x context_parallel 4 does not divide the 8"),
        ({"context_parallel": 4, "cfg": 3}, "cfg 3 x context_parallel 4 does not divide the 8 processes"),
        ({"context_parallel": 0}, "context_parallel must be at least 1, got 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_its_number(settings, reason):
    with pytest.raises(MovaError, match=reason):
        choose_mesh(8, 40, **settings)


def test_a_refusal_proposes_meshes_that_fit():
    with pytest.raises(MovaError) as refusal:
        choose_mesh(8, 40, context_parallel=3)
    proposed = str(refusal.value).partition("Nearest that fit: ")[2].split("; ")
    assert "dp_shard 2 x ulysses 4" in proposed and "dp_shard 4 x ulysses 2" in proposed


@pytest.mark.parametrize(("total", "parts"), [(7, 4), (1001, 8), (403, 2), (3, 8), (0, 2)])
def test_every_token_has_one_rank(total, parts):
    lengths = lengths_of(total, parts)
    assert sum(lengths) == total and len(lengths) == parts and max(lengths) - min(lengths) <= 1


def test_the_launcher_is_read():
    environment = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
    assert read_launch(environment) == Launch(rank=3, local_rank=1, world=4)
    assert read_launch({}) == Launch()
    for wrong, message in (
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: start them with torchrun"),
        ({**environment, "RANK": "x"}, "must be whole numbers"),
        ({**environment, "RANK": "4"}, "RANK is 4 of WORLD_SIZE 4"),
    ):
        with pytest.raises(MovaError, match=message):
            read_launch(wrong)


def test_a_mesh_of_another_size_than_the_world_is_refused():
    with pytest.raises(MovaError, match="the mesh ulysses 2 needs 2 processes, but 4 were started"):
        start_processes(get_backend("cpu"), Launch(0, 0, 4), MeshShape(ulysses=2))


def test_processes_that_do_not_meet_give_up_in_words(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(MovaError, match=r"rank 1 of 2 could not connect to the others at 127.0.0.1:1 within 1 s"):
        start_processes(get_backend("cpu"), Launch(1, 1, 2), MeshShape(ulysses=2), timeout_s=1)


@pytest.mark.slow
def test_a_rank_that_stays_away_is_waited_for_no_longer_than_said():
    """In a group of two of four ranks: groups of some ranks do not take over the world's timeout by themselves."""
    world = World(4)
    try:
        found = world.run("waiting_in_vain", timeout_s=3.0)
    finally:
        world.close()
    seconds, said = found[2]
    assert 2 < seconds < 8 and "imed out" in said, found
    assert found[0][1] == found[1][1] == "", "the other pair has met"
