"""All ranks of a sampling run without the ranks: the clips and noise computed for them, and that faults are found."""

from dataclasses import replace

import pytest

from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.inference import sampling_simulation as simulation
from mova_engine.inference.requests import Prompt, make_requests

# Guidance's two branches, four groups of clips, two ranks that share one.
SHAPE = MeshShape(cfg=2, dp_shard=4, ulysses=2)
NANO = get_preset("nano")


def _run(count=11, batch=2, sharded=False):
    """11 clips in batches of 2: two turns, the second of one batch of 2 and one of 1."""
    requests = [request for _, request in make_requests([Prompt("clip", None, None)], count, 5)]
    made = simulation.batches_of_ranks(requests, SHAPE, batch, sharded)
    return requests, made, simulation.simulate_clips(requests, made, SHAPE, batch, sharded)


@pytest.mark.parametrize("sharded", [False, True])
def test_every_clip_is_made_once_from_noise_of_its_own(sharded):
    _, made, data = _run(sharded=sharded)
    assert data == {"clips": 11, "batch": 2, "turns": 2, "idle_ranks": 2 * 4}
    assert all(rank[1] for rank in made) is sharded
    assert simulation.simulate_noise(made, NANO, SHAPE) == {"different": 11, "alike": 4}


def _of_the_rank(turn, group, sharded):
    return turn[0]


def _reversed(turn, group, sharded):
    return turn[len(turn) - 1 - group] if group < len(turn) else ()


@pytest.mark.parametrize("division", [_of_the_rank, _reversed])
def test_a_broken_division_is_found(division, monkeypatch):
    monkeypatch.setattr(simulation, "part_of", division)
    with pytest.raises(MovaError, match=r"clips: rank 0 collects \d+ of 11, and clip \d+ is not in its place"):
        _run()


def test_ranks_that_do_not_make_a_clip_together_are_found(monkeypatch):
    groups = SHAPE.clip_groups()
    monkeypatch.setattr(MeshShape, "clip_groups", lambda self: groups)
    monkeypatch.setattr(MeshShape, "data_rank", lambda self, rank: rank % 4)
    with pytest.raises(MovaError, match="clips: ranks 0 and 1 do not make the same clips in turn 1"):
        _run()


def test_a_rank_without_a_batch_while_others_gather_weights_is_found():
    requests, made, _ = _run()
    with pytest.raises(MovaError, match="clips: rank 4 has none in turn 2"):
        simulation.simulate_clips(requests, made, SHAPE, 2, True)


def test_broken_noise_is_found(monkeypatch):
    _, made, _ = _run()
    made[1][0] = [replace(request, seed=request.seed + 1) for request in made[1][0]]
    with pytest.raises(MovaError, match="noise: ranks 0 and 1 make a clip together from different noise"):
        simulation.simulate_noise(made, NANO, SHAPE)
    draw = simulation.draw_noise
    monkeypatch.setattr(simulation, "draw_noise", lambda model, seeds, clip: draw(model, [0 for _ in seeds], clip))
    with pytest.raises(MovaError, match="noise: the clips of seeds 5 and 6 are made from the same noise"):
        simulation.simulate_noise(_run()[1], NANO, SHAPE)
