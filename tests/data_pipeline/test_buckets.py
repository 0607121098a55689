"""Buckets: which one a clip goes to, lists sorted into them, steps of one bucket each, the same for any processes."""

import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from data_pipeline.conftest import CLIP
from data_pipeline.media import clicks

from mova_engine.commands.data_check import main as check_main
from mova_engine.commands.data_preview import main as preview_main
from mova_engine.commands.encode import main as encode_main
from mova_engine.config.buckets import BucketSettings, bucket_name, largest
from mova_engine.config.model import ClipConfig
from mova_engine.config.recipes import load_config
from mova_engine.data.bucket_choice import NONE, chosen, kept
from mova_engine.data.bucketed import BucketedClips, batches_of_one_shape
from mova_engine.data.clip_buckets import sort_clips
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.dataset import open_entries
from mova_engine.data.media.resize import centre_crop
from mova_engine.data.media.write import write_mp4
from mova_engine.data.mixture import MixedLoader, MixedSet, MixOrder
from mova_engine.data.shard_index import write_index
from mova_engine.errors import MovaError
from mova_engine.train.model_setup import model_config

PAPER = ClipConfig(frames=193, height=352, width=640)
SHAPES = tuple(replace(CLIP, width=w, height=h, frames=f) for w, h in ((48, 32), (32, 48)) for f in (5, 9))
SIZES = ((96, 64, 5), (64, 96, 5), (96, 64, 12), (48, 80, 12), (96, 64, 5), (64, 96, 2))


@pytest.fixture(scope="module")
def mixed_folder(tmp_path_factory):
    """Clips of two shapes and two lengths, and one that is too short for all."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    for index, (width, height, frames) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (frames, height // 16, width // 16, 3)).astype(np.uint8)
        write_mp4(folder / f"{index}.mp4", blocks.repeat(16, 1).repeat(16, 2), clicks([0.05], frames / 24)[0])
        (folder / f"{index}.txt").write_text(f"clip {index}")
    return folder


def names(settings: BucketSettings, clip: ClipConfig = PAPER) -> list[str]:
    return [bucket_name(shape) for shape in settings.shapes(clip)]


def test_settings_name_sizes_shapes_and_lengths():
    assert names(BucketSettings()) == ["640x352x193"]
    assert names(BucketSettings(sizes=("640x352", "352x640x97"))) == ["640x352x193", "352x640x97"]
    found = names(BucketSettings(aspects=("16:9", "9:16", "1:1"), frames=(97, 193)))
    assert found[:4] == ["640x352x97", "640x352x193", "352x640x97", "352x640x193"] and found[4] == "464x464x97"
    assert bucket_name(largest(BucketSettings(frames=(97, 193)).shapes(PAPER))) == "640x352x193"
    for ratio in ("4:3", "21:9", "2:3", "1:1"):
        (shape,) = BucketSettings(aspects=(ratio,), pixels=500_000).shapes(PAPER)
        wanted = float(ratio.partition(":")[0]) / float(ratio.partition(":")[2])
        assert 0.9 * 500_000 < shape.width * shape.height <= 500_000 and shape.width % 16 == shape.height % 16 == 0
        assert abs(np.log(shape.width / shape.height / wanted)) < 0.03


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sizes": ("640x350",)}, "640x350x1: height and width must be positive multiples of 16"),
        ({"sizes": ("wide",)}, "'wide' is no size: WIDTHxHEIGHT"),
        ({"frames": (96,)}, "frames must be 4n"),
        ({"aspects": ("969",)}, "'969' is no shape: WIDTH:HEIGHT, such as 16:9 .in YAML in quotes"),
        ({"pixels": 100_000}, "buckets.pixels is for buckets.aspects"),
        ({"sizes": ("640x352", "640x352")}, "640x352x1 is given twice"),
    ],
)
def test_settings_that_no_run_can_use_are_refused(settings, words):
    with pytest.raises(MovaError, match=words):
        BucketSettings(**settings)


def test_a_clip_goes_where_most_of_it_is_kept():
    buckets = BucketSettings(aspects=("16:9", "9:16"), frames=(97, 193)).shapes(PAPER)
    clips = {
        (1280, 720, 10.0): "640x352x193",
        (720, 1280, 10.0): "352x640x193",
        (720, 1280, 5.0): "352x640x97",
        (720, 1280, 193 / 24): "352x640x193",
        (720, 1280, 192 / 24): "352x640x97",
        (360, 640, 3600.0): "352x640x193",
        (720, 1280, 2.0): None,
    }
    found = chosen(np.array(list(clips)), buckets)
    assert [None if n == NONE else bucket_name(buckets[n]) for n in found] == list(clips.values())
    # Of sizes of one shape the largest that the clip fills.
    scales = BucketSettings(sizes=("640x352", "1280x704")).shapes(PAPER)
    assert chosen(np.array([[1920, 1080, 9.0], [640, 360, 9.0]]), scales).tolist() == [1, 0]


def test_portrait_clips_keep_their_picture():
    """The share that is stated is the one that cropping leaves."""
    picture = np.zeros((1280, 720, 3), np.uint8)
    for shape, share in ((PAPER, 0.309), (replace(PAPER, height=640, width=352), 0.978)):
        left = centre_crop(picture, shape.width / shape.height)
        assert left.shape[0] * left.shape[1] / (1280 * 720) == pytest.approx(share, abs=2e-3)
        assert kept(np.array([[720, 1280, 10.0]]), shape).picture[0] == pytest.approx(share, abs=2e-3)


def test_files_are_sorted_by_what_they_show_and_looked_at_once(mixed_folder, tmp_path, monkeypatch):
    found = sort_clips(read_clips(mixed_folder), SHAPES, tmp_path)
    assert [[entry.id for entry in each.entries] for each in found.buckets] == [
        ["0.mp4", "4.mp4"],
        ["2.mp4"],
        ["1.mp4"],
        ["3.mp4"],
    ]
    assert found.left_out == 1 and "5.mp4: too short for every bucket" in found.reasons["5.mp4"]
    assert [float(each.kept.picture) for each in found.buckets] == pytest.approx([1, 1, 1, 0.9])
    monkeypatch.setattr("mova_engine.data.clip_sizes.probe_shown", None)
    again = sort_clips(read_clips(mixed_folder), SHAPES, tmp_path)
    assert [list(each.entries) for each in again.buckets] == [list(each.entries) for each in found.buckets]


def table_of(folder, rows):
    path = folder / "clips.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_clips(path, folder / "cache", listed=2)


def test_long_lists_are_sorted_by_their_columns_into_files(tmp_path):
    rows = [
        {"video_path": f"{n}.mp4", "caption": "", "width": 96 if n % 3 else 64, "height": 80, "duration": 0.3 + n % 2}
        for n in range(50)
    ]
    listed, table = sort_clips(read_clips_of(tmp_path, rows), SHAPES, tmp_path), table_of(tmp_path, rows)
    found = sort_clips(table, SHAPES, tmp_path)
    for short, long in zip(listed.buckets, found.buckets, strict=True):
        assert [entry.id for entry in long.entries] == [entry.id for entry in short.entries]
        assert long.kept == pytest.approx(short.kept)
    assert sum(len(each.entries) for each in found.buckets) == 50 and len(found.used) > 2
    again = sort_clips(table, SHAPES, tmp_path)
    assert [each.entries.order_digest for each in again.used] == [each.entries.order_digest for each in found.used]
    del rows[7]["width"]
    (tmp_path / "other").mkdir()
    with pytest.raises(MovaError, match="clip '7.mp4' does not state width, height and duration"):
        sort_clips(table_of(tmp_path / "other", rows), SHAPES, tmp_path)


def read_clips_of(folder, rows):
    (folder / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_clips(folder / "short.jsonl", folder / "cache")


COUNTS = (24, 7, 13)


def test_steps_are_of_one_bucket_and_each_clip_comes_once_before_any_comes_again():
    order = MixOrder(("a", "b", "c"), COUNTS, COUNTS, 1, turn=6)
    stream = [order[position] for position in range(6 * 200)]
    owner = np.repeat(np.arange(3), COUNTS)
    for step in range(200):
        assert len({owner[index] for index in stream[6 * step : 6 * step + 6]}) == 1
    for bucket, count in enumerate(COUNTS):
        own = [index for index in stream if owner[index] == bucket]
        assert all(len(set(own[k : k + count])) == count for k in range(0, len(own) - count + 1, count))
        # As often as any other clip, to a step or two.
        assert abs(len(own) / count - 6 * 200 / sum(COUNTS)) <= 2 * 6 / count
    for position in (0, 5, 6, 63, 64 * 6, 64 * 6 + 3, 1000):
        assert order.taken(position) == tuple(np.bincount(owner[stream[:position]], minlength=3))


@pytest.fixture
def bucketed(mixed_folder, make_cache, tmp_path):
    """The folder's clips in their buckets."""
    found = sort_clips(read_clips(mixed_folder), SHAPES, tmp_path)
    sets = []
    for each in found.used:
        cache = make_cache(clip=each.clip)
        sets.append(MixedSet(each.name, len(each.entries), open_entries(each.entries, cache, "clips", preload=False)))
    return BucketedClips(sets, (), found.reasons)


def loader(clips, *, rank=0, world=1, batch=6, turn=6) -> MixedLoader:
    return MixedLoader(clips, batch, seed=1, rank=rank, world=world, workers=0, rounds=None, turn=turn)


def test_resumed_on_one_three_and_two_processes_the_stream_is_the_same(bucketed):
    alone = loader(bucketed)
    expected = [name for batch, _ in zip(alone, range(6), strict=False) for name in batch["id"]]
    state, given = None, []
    for world, steps in ((1, 2), (3, 2), (2, 2)):
        ranks = [loader(bucketed, rank=rank, world=world, batch=6 // world) for rank in range(world)]
        for each in ranks if state else ():
            assert each.load_state_dict(state) == []
        streams = [iter(each) for each in ranks]
        for _ in range(steps):
            batches = [next(stream) for stream in streams]
            assert len({batch["video_latents"].shape[1:] for batch in batches}) == 1
            given += [name for batch in batches for name in batch["id"]]
        state = json.loads(json.dumps(ranks[0].state_dict()))
    assert given == expected


def test_another_number_of_clips_a_step_is_said(bucketed):
    state = loader(bucketed).state_dict()
    with pytest.raises(MovaError, match="a step takes 4 clips, not 6"):
        loader(bucketed, batch=4, turn=4).load_state_dict(state)
    assert loader(bucketed, batch=4, turn=4).load_state_dict(state, "go-on")
    with pytest.raises(MovaError, match="of a run without buckets"):
        loader(bucketed).load_state_dict({"position": 0, "seed": 1})


def test_batches_of_held_out_clips_have_one_shape(bucketed):
    batches = list(batches_of_one_shape(bucketed, 5, 4))
    assert sorted(index for batch in batches for index in batch) == list(range(5))
    assert all(len({bucket_name(bucketed.shape_of(index)) for index in batch}) == 1 for batch in batches)
    assert [bucketed[index]["video_latents"].shape[1:] for index in (0, 2)] == [(2, 4, 6), (3, 4, 6)]


ASKED = ["--buckets.sizes", "48x32", "32x48", "--buckets.frames", "5", "9"]


def test_commands_look_at_clips_in_their_buckets(mixed_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ["--data", str(mixed_folder), "--model", "nano", *ASKED]
    assert check_main(common) == 1
    said = capsys.readouterr().out
    assert "5.mp4: too short for every bucket" in said and "picture kept" in said and "1 clip of 6 cannot" in said
    assert preview_main(common) == 1
    assert sorted(path.name for path in tmp_path.glob("preview-*.png")) == [
        f"preview-{size}x{frames}.png" for size in ("32x48", "48x32") for frames in (5, 9)
    ]
    capsys.readouterr()
    assert encode_main([*common, "--out", str(tmp_path / "out")]) == 1
    assert "5 of 6 clips are in" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "clips").rglob("*.safetensors"))) == 5


def test_too_few_tokens_for_the_processes_are_refused_at_once():
    config = load_config("nano", buckets={"sizes": ["48x48", "16x32x5"]}, parallel={"context_parallel": 8})
    with pytest.raises(MovaError, match="a clip of 16x32x5 has only 4: give fewer processes"):
        model_config(config)


def test_the_index_of_shards_states_sizes(mixed_folder, tmp_path):
    pytest.importorskip("pyarrow")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for path in sorted(mixed_folder.glob("[0-9].*")):
            tar.add(path, path.name)
    write_index([str(tmp_path / "0.tar")], tmp_path / "clips.parquet", sizes=True, say=lambda line: None)
    table = read_clips(tmp_path / "clips.parquet", tmp_path / "cache", listed=2)
    shown = [entry.shown for entry in table if entry.shown is not None]
    found = [(size.width, size.height, round(size.seconds * 24)) for size in shown]
    assert found == list(SIZES)
