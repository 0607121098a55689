"""All ranks of a run without the ranks: what is worked out of them, and that faults in it are found."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from mova_engine.config.mesh import DIMENSIONS, MeshShape
from mova_engine.config.recipes import load_config
from mova_engine.data import loader, mixture
from mova_engine.distributed.fsdp import LocalShard
from mova_engine.distributed.processes import Launch, Processes
from mova_engine.errors import MovaError
from mova_engine.rehearsal import all_ranks as ranks
from mova_engine.rehearsal.simulated import members_in_words
from mova_engine.train import simulation
from mova_engine.train.assembly import mesh_of


def _run(recipe="joint-phase3", world=64, **settings):
    config = load_config(recipe, **settings)
    return config, mesh_of(config, world)


@pytest.mark.parametrize("recipe, world", [("joint-phase1", 64), ("joint-phase3", 1024), ("audio-pretrain", 4)])
def test_every_clip_comes_once_an_epoch_and_a_clip_has_one_noise(recipe, world):
    config, shape = _run(recipe, world)
    data, noise = simulation.simulate_data(config, shape), simulation.simulate_noise(config, shape)
    assert data["clips"] % config.clips_per_step(shape) and data["resumed_ranks"] != world
    micro_batches = min(config.micro_batches(shape), 2)
    assert noise["alike"] == shape.clip_ranks
    assert noise["different"] == noise["steps"] * micro_batches * shape.data_parallel * config.loader.batch


MIX = ("music:3", "effects", "speech:0.5")


def test_the_folders_of_a_mix_have_their_own_epochs_and_shares(monkeypatch):
    config, shape = _run("audio-pretrain", 4, mix=MIX)
    data = simulation.simulate_data(config, shape)
    assert data["resumed_ranks"] != 4 and data["sources"] == 3
    # Weights that the loader does not keep are found, and so is an order in which a clip comes twice.
    taken = mixture.apportioned
    monkeypatch.setattr(mixture, "apportioned", lambda total, weights: taken(total, [1 / 3] * 3))
    with pytest.raises(MovaError, match=r"data order: music gives \d+ of \d+ clips, by its weight \d+"):
        simulation.simulate_data(config, shape)
    monkeypatch.undo()
    monkeypatch.setattr(mixture.ClipOrder, "__getitem__", lambda self, position: position % max(1, self.count - 1))
    with pytest.raises(MovaError, match="data order: in epoch 1 clip 0 is given twice"):
        simulation.simulate_data(config, shape)


def _always_the_first_group(self):
    position = self.loader.position
    while True:
        yield [self.loader._order[position]]
        position += self.loader.world


def _one_too_far(self):
    first = self.loader.position + self.loader.rank
    while True:
        yield [self.loader._order[first]]
        first += self.loader.world + 1


def _by_member(self):
    position = self.loader.position + self.loader.rank + self.loader.rounds.rank
    while True:
        yield [self.loader._order[position]]
        position += self.loader.world


@pytest.mark.parametrize(
    "order, said",
    [
        (_always_the_first_group, "in epoch 1 clip .* is given twice, to data-parallel groups 0 and 1"),
        (_one_too_far, "in epoch 1 .*clip"),
        (_by_member, "in epoch 1 clip .* is given twice"),
    ],
)
def test_a_broken_sampler_is_found(order, said, monkeypatch):
    monkeypatch.setattr(loader._Indices, "_every", order)
    with pytest.raises(MovaError, match=f"data order: {said}"):
        simulation.simulate_data(*_run())


def test_ranks_that_take_each_others_turns_are_found(monkeypatch):
    monkeypatch.setattr(loader.Rounds, "own", lambda self, wanted: wanted)
    with pytest.raises(MovaError, match="data order: in epoch 1 clip .* is given twice"):
        simulation.simulate_data(*_run())


def test_a_position_that_is_not_saved_rightly_is_found(monkeypatch):
    state_dict = loader.Loader.state_dict
    monkeypatch.setattr(loader.Loader, "state_dict", lambda self: state_dict(self) | {"position": self.position - 1})
    with pytest.raises(MovaError, match="data order: in epoch 1 clip .* is given twice"):
        simulation.simulate_data(*_run())


@pytest.mark.parametrize(
    "place, name, broken, said",
    [
        (simulation, "first_clip", lambda micro, groups, rank, batch: micro * groups, "ranks 0 and 16 draw the same"),
        (MeshShape, "data_rank", lambda self, rank: rank, "share a clip and draw different noise"),
        (simulation, "rank_seed", lambda seed, rank: seed, "not seeded alike in the ranks that share a clip alone"),
    ],
)
def test_a_broken_seed_is_found(place, name, broken, said, monkeypatch):
    config, shape = _run()
    groups = shape.clip_groups()
    monkeypatch.setattr(MeshShape, "clip_groups", lambda self: groups)
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(MovaError, match=f"noise: .*{said}"):
        simulation.simulate_noise(config, shape)


@pytest.fixture
def processes():
    """The first of 48 processes, of which 47 are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    shape = MeshShape(2, 1, 3, 2, 4)
    dist.init_process_group("fake", rank=0, world_size=shape.world, store=FakeStore())
    mesh = init_device_mesh("cpu", shape.sizes, mesh_dim_names=DIMENSIONS)
    yield Processes(Launch(0, 0, shape.world), shape, mesh)
    dist.destroy_process_group()


def test_the_mesh_is_torchs(processes, monkeypatch):
    shape = processes.shape
    coordinates, groups = ranks.simulate_mesh(shape, processes)
    assert coordinates[0] == [0, 0, 0, 0, 0] and coordinates[47] == [1, 0, 2, 1, 3]
    first = [[*range(8), *range(24, 32)], [*range(8, 16), *range(32, 40)]]
    assert groups["clip"] == {"groups": 3, "ranks": 16, "first": first}
    assert groups["ring"]["first"] == [[0, 4], [1, 5]] and "dp_replicate" not in groups
    data_rank = MeshShape.data_rank
    monkeypatch.setattr(MeshShape, "data_rank", lambda self, rank: (data_rank(self, rank) + rank // 24) % 3)
    with pytest.raises(MovaError, match="are no group that shares clips"):
        ranks.simulate_mesh(shape, processes)


def _pieces(shards):
    """Of the first of so many ranks: four weights, one with fewer rows than ranks, and the optimizer's step."""
    shapes = {"video_dit:a": (100, 3), "video_dit:aa": (100, 3), "video_dit:b": (1, 6, 5), "training/master:c": (64,)}
    found = {}
    for name, shape in shapes.items():
        count = -(-shape[0] // shards)
        found[name] = LocalShard(torch.empty(count, *shape[1:], device="meta"), shape)
    return found | {"training/optimizer:step": LocalShard(torch.empty((), device="meta"), ())}


def test_a_checkpoints_bytes_and_its_plan():
    found = ranks.simulate_checkpoint(_pieces(16), world=32, shards=16)
    assert found["bytes"] == {"video_dit": 4 * (600 + 30), "training/master": 4 * 64, "training/optimizer": 4}
    # 15 ranks have rows of a and aa, which two copies take in turns, 16 of c, one of b, and all have the step.
    assert found["plan"]["written_ranges"] == 2 * 15 + 16 + 1 + 1 and found["plan"]["checksums"] == 3
    assert found["writing_ranks"] == 16 + 15
    alone = ranks.simulate_checkpoint(_pieces(1), world=8, shards=1)
    assert alone["writing_ranks"] == 1 and alone["most_bytes_of_a_rank"] == sum(found["bytes"].values())


def test_rows_that_nobody_saves_are_found(monkeypatch):
    monkeypatch.setattr(ranks, "rows_of", lambda rows, size, rank: (rank * (rows // size), max(rows // size, 1)))
    with pytest.raises(MovaError, match=r"checkpoint: FSDP gives the first rank other rows"):
        ranks.simulate_checkpoint(_pieces(16), world=16, shards=16)


def test_ranks_in_words():
    assert members_in_words(range(16)) == "0-15" and members_in_words([0, 16, 32]) == "0-32 by 16"
    assert members_in_words([0, 8]) == "0/8" and members_in_words([0, 1, 24, 25]) == "0/1/24/25"
