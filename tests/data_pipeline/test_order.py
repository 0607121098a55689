"""The order of clips: every one once an epoch on any number of processes, random by measure, without an array."""

import numpy as np
import pytest
from data_pipeline.shuffling import distances

from mova_engine.data import loader as loader_module
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.loader import ARRAY, FUNCTION, ClipOrder, build_loader
from mova_engine.data.metadata import read_metadata
from mova_engine.data.permutation import Permutation
from mova_engine.errors import MovaError


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 101, 4096, 10_007, 65_537])
def test_every_number_once(count):
    for epoch in range(3):
        assert np.array_equal(np.sort(Permutation(count, 7, epoch)(np.arange(count))), np.arange(count))


def test_the_same_numbers_one_by_one_and_at_once():
    count = 27_000_000
    places = np.random.default_rng(0).integers(0, count, 200)
    permutation = Permutation(count, 3, 1)
    whole = permutation(places)
    assert whole.min() >= 0 and whole.max() < count
    assert [int(permutation(np.array([place]))[0]) for place in places] == whole.tolist()
    assert not np.array_equal(Permutation(count, 3, 2)(places), whole)
    assert not np.array_equal(Permutation(count, 4, 1)(places), whole)


def test_as_random_as_a_true_permutation():
    """Statistics of 24 orders, in units of their standard deviation over true permutations: the means lie within 4
    standard errors, as those of true ones do; two rounds are caught."""
    count, orders = 20_011, 24
    true = [distances(np.random.default_rng((9, k)).permutation(count)) for k in range(orders)]
    drawn = [distances(Permutation(count, k, 0)(np.arange(count))) for k in range(orders)]
    weak = [distances(_with_rounds(count, k, 2)) for k in range(orders)]
    assert worst_deviation(true) < 4 and worst_deviation(drawn) < 4
    assert worst_deviation(weak) > 20


def _with_rounds(count: int, seed: int, rounds: int) -> np.ndarray:
    permutation = Permutation(count, seed, 0)
    permutation._keys = permutation._keys[:rounds]
    return permutation(np.arange(count))


def worst_deviation(found: list[dict[str, float]]) -> float:
    return max(abs(np.mean([each[name] for each in found])) * len(found) ** 0.5 for name in found[0])


def test_epochs_are_independent():
    """The places that two epochs give to a clip, and neighbours that stay neighbours."""
    count = 50_021
    first, second = (Permutation(count, 1, epoch)(np.arange(count)) for epoch in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / count**0.5
    follower = np.empty(count, np.int64)
    follower[first] = np.roll(first, -1)
    assert np.count_nonzero(follower[second] == np.roll(second, -1)) <= 8  # 1 is expected


def test_short_lists_keep_their_order_and_long_ones_have_a_function():
    assert ClipOrder(1000, 0).version == ARRAY and ClipOrder(1 << 20, 0).version == FUNCTION
    order = ClipOrder(7, 5)
    expected = np.random.default_rng((5, 0)).permutation(7).tolist()
    assert [order[place] for place in range(7)] == expected  # as in every version of the engine
    long = ClipOrder(27_000_000, 5)
    assert [long[place] for place in (0, 5000, 26_999_999)] == Permutation(27_000_000, 5, 0)(
        np.array([0, 5000, 26_999_999])
    ).tolist()
    with pytest.raises(MovaError, match="of a newer kind"):
        ClipOrder(7, 5, version=3)


@pytest.fixture
def many(made_clips, make_cache):
    """A data set of 211 clips that are never read, in an order by the function."""
    [entry, *_] = read_metadata(made_clips)
    entries = [type(entry)(entry.path, "", f"clip {number}") for number in range(211)]
    return LatentDataset(entries, make_cache(), preload=False)


def taken(dataset, state, *, world: int, batch: int, steps: int, seed: int = 3):
    """The rows that `world` processes take in `steps` steps from `state` on, in order, and their state afterwards."""
    loaders = [build_loader(dataset, batch, seed=seed, rank=rank, world=world) for rank in range(world)]
    indices = []
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
        batches = iter(loader_module._Indices(loader))
        indices.append([next(batches) for _ in range(steps)])
        loader._position += steps * batch * world
    states = [loader.state_dict() for loader in loaders]
    assert all(each == states[0] for each in states)
    return [row for step in zip(*indices, strict=True) for rows in step for row in rows], states[0]


@pytest.mark.parametrize("version", [ARRAY, FUNCTION])
def test_each_clip_once_an_epoch_for_three_epochs_on_1_3_and_2_processes(many, monkeypatch, version):
    monkeypatch.setattr(loader_module, "FUNCTION_FROM", 1 if version == FUNCTION else 1 << 20)
    count, rows, state = len(many), [], None
    for world, batch, steps in ((1, 5, 37), (3, 4, 23), (2, 3, 1)):
        more, state = taken(many, state, world=world, batch=batch, steps=steps)
        rows += more
    left = -(-(3 * count - len(rows)) // 6)
    rows += taken(many, state, world=2, batch=3, steps=left)[0]
    for epoch in range(3):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))
    alone, _ = taken(many, None, world=1, batch=1, steps=3 * count)
    assert rows[: 3 * count] == alone
    assert state["order"] == version


def test_a_run_keeps_the_order_it_began_with(many, monkeypatch):
    """A checkpoint of an earlier engine, which has no word on the order, goes on by arrays however long the list."""
    _, state = taken(many, None, world=1, batch=1, steps=10)
    del state["order"]
    expected, _ = taken(many, None, world=1, batch=1, steps=30)
    monkeypatch.setattr(loader_module, "FUNCTION_FROM", 1)
    assert taken(many, state, world=1, batch=1, steps=20)[0] == expected[10:]
    assert taken(many, None, world=1, batch=1, steps=30)[0] != expected
