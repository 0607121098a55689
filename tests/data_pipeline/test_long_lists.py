"""Resuming a long list, whose clips a checkpoint does not hold one by one: exactly, or by a said rule if it changed."""

import json

import pytest
from data_pipeline.test_manifests import write_csv

from mova_engine.data import dataset as dataset_module
from mova_engine.data import loader as loader_module
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.clip_table import ClipTable
from mova_engine.data.dataset import LatentDataset
from mova_engine.data.loader import build_loader
from mova_engine.errors import MovaError
from mova_engine.train.rank_agreement import _different_clips

ROWS = [{"video_path": f"{n}.mp4", "caption": f"clip {n}"} for n in range(50)]


@pytest.fixture
def make_loader(tmp_path, make_cache, monkeypatch):
    """A loader of a list that counts as long."""
    monkeypatch.setattr(dataset_module, "MARKED", 0)
    monkeypatch.setattr(loader_module, "FUNCTION_FROM", 1)

    def make(rows, **options):
        table = read_clips(write_csv(tmp_path / "clips.csv", rows), listed=0)
        return build_loader(LatentDataset(table, make_cache(), preload=False), 4, seed=1, **options)

    return make


def rows_of(loader, count):
    batches = iter(loader_module._Indices(loader))
    return [next(batches) for _ in range(count)]


def test_a_long_list_goes_on_exactly(make_loader):
    loader = make_loader(ROWS)
    expected = rows_of(loader, 40)
    loader._position = 17 * 4
    state = json.loads(json.dumps(loader.state_dict()))
    assert state.keys() == {"position", "seed", "clips", "digest", "order", "contents"} and len(str(state)) < 200
    again = make_loader(ROWS)
    assert again.load_state_dict(state) == [] and rows_of(again, 23) == expected[17:]


def test_a_long_list_that_has_changed(make_loader):
    loader = make_loader(ROWS)
    loader._position = 60
    state = loader.state_dict()
    other = [*ROWS[:-1], {**ROWS[-1], "caption": "another"}]
    assert make_loader(other).load_state_dict(state) == [
        "clips are not as in the checkpoint: captions or starts have changed"
    ]
    with pytest.raises(MovaError, match=r"not those of the checkpoint \(50 then, 49 now\): .*--loader.changed go-on"):
        make_loader(ROWS[1:]).load_state_dict(state)
    shorter = make_loader(ROWS[1:])
    [note] = shorter.load_state_dict(state, "go-on")
    assert note.endswith("(50 then, 49 now): continuing with the present ones at the beginning of epoch 3")
    assert shorter.position == 2 * 49
    taken = [row for batch in rows_of(shorter, 13) for row in batch][:49]
    assert sorted(taken) == list(range(49))


def test_from_a_short_list_to_a_long_one(make_loader, monkeypatch):
    """The order is that of the checkpoint, which has marks; if the list has grown, the next epoch has the new order."""
    with monkeypatch.context() as short:
        short.setattr(dataset_module, "MARKED", 1000)
        short.setattr(loader_module, "FUNCTION_FROM", 1000)
        before = make_loader(ROWS)
        expected = rows_of(before, 20)
        before._position = 8
        state = before.state_dict()
        assert "marks" in state
    after = make_loader(ROWS)
    assert after.load_state_dict(state) == [] and rows_of(after, 18) == expected[2:]
    assert after.state_dict()["order"] == loader_module.ARRAY
    grown = make_loader([*ROWS, {"video_path": "new.mp4", "caption": ""}])
    assert len(grown.load_state_dict(state, "go-on")) == 1
    assert grown.state_dict()["order"] == loader_module.FUNCTION


@pytest.mark.parametrize("ids", [("a", "b", "c"), ()])
def test_processes_that_found_other_clips_bad_are_told_which(ids):
    """Of a list whose clips are all kept in the order, and of a long one whose ids are not exchanged."""
    said = _different_clips("clips", [(ids, False, {}), (ids, False, {"b": "no such file"}), (ids, False, {})])
    assert said.startswith("the processes do not agree on the clips: 'b' only in ranks 0, 2 (rank 1: no such file); ")


def test_several_long_lists_go_on_without_being_read_through(tmp_path, make_cache, monkeypatch):
    """The digests of a table are those that it holds; names, the order of sources and a short source count too."""
    monkeypatch.setattr(dataset_module, "MARKED", 0)
    monkeypatch.setattr(ClipTable, "__iter__", lambda self: pytest.fail("the ids of a table were read"))

    def make(first, second, order=("a", "b"), short=1):
        write_csv(tmp_path / "a.csv", first)
        write_csv(tmp_path / "b.csv", second)
        (tmp_path / "c").mkdir(exist_ok=True)
        rows = [{"video_path": f"{n}.mp4", "caption": ""} for n in range(short)]
        (tmp_path / "c" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = [tmp_path / f"{name}.csv" for name in order] + [tmp_path / "c"]
        clips = LatentDataset(read_clips(sources, listed=3), make_cache(), preload=False)
        return build_loader(clips, 4, seed=1)

    state = make(ROWS[:9], ROWS[9:]).state_dict()
    assert make(ROWS[:9], ROWS[9:]).load_state_dict(state) == []
    other = [*ROWS[9:-1], {**ROWS[-1], "caption": "another"}]
    assert "captions or starts have changed" in make(ROWS[:9], other).load_state_dict(state)[0]
    for changed in (
        make(ROWS[:10], ROWS[10:]),
        make(ROWS[:9], ROWS[9:], order=("b", "a")),
        make(ROWS[:9], ROWS[9:], short=2),
    ):
        with pytest.raises(MovaError, match="not those of the checkpoint"):
            changed.load_state_dict(state)
