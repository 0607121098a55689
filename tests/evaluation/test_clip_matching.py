"""A file is the clip whose whole id its name begins with, never one whose id is a part of another's."""

from pathlib import Path

import pytest

from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_items import BenchItem
from mova_engine.evaluation.benches.clip_matching import match_files


def matched(names, ids, category="all"):
    found = match_files(map(Path, names), [BenchItem(name, category) for name in ids])
    return {file.as_posix(): item.id for file, item in found.item_of.items()}, found


def test_unpadded_ids_do_not_take_each_other_s_files():
    ids = [str(i) for i in range(1, 133)]
    files, found = matched([f"{i}_video_a cat_step1_seed0.mp4" for i in ids], ids)
    assert all(file.split("_")[0] == name for file, name in files.items())
    assert len(files) == 132 and not found.missing and not found.extra


@pytest.mark.parametrize(
    ("file", "ids", "wanted"),
    [
        ("clip_ff0690e6.mp4", ["clip", "clip_ff0690e6"], "clip_ff0690e6"),
        ("clip_ff0690e60.mp4", ["clip_ff0690e6"], None),
        ("abc-d_e f.wav", ["abc", "abc-d", "abc-d_e"], "abc-d_e"),
        ("001_two people.mp4", ["1", "2", "10"], "1"),
        ("00001000.mp4", ["00001000", "00000100"], "00001000"),
        ("0010a.mp4", ["10"], None),
        ("1_a.mp4", ["01", "11"], "01"),
        ("-xyz.wav", ["-xyz"], "-xyz"),
        ("seed1.mp4", ["1"], None),
    ],
)
def test_the_longest_whole_id_counts(file, ids, wanted):
    files, found = matched([file], ids)
    assert files == ({file: wanted} if wanted else {})
    assert (not found.extra) == (wanted is not None)


def test_what_is_missing_and_what_is_no_clip_is_known():
    _, found = matched(["b_seed0.mp4", "b_seed1.mp4", "z.mp4"], ["a", "b", "c"])
    assert [item.id for item in found.missing] == ["a", "c"]
    assert [len(files) for files in found.files] == [0, 2, 0] and found.extra == (Path("z.mp4"),)


def test_a_category_s_folder_tells_clips_of_one_id_apart():
    items = [BenchItem("1", "movie"), BenchItem("1", "anime"), BenchItem("2", "anime")]
    found = match_files(
        [Path("step_9/movie/1_a.mp4"), Path("anime/1_a.mp4"), Path("2.mp4"), Path("movie/2.mp4")], items
    )
    assert {file.as_posix(): item.category for file, item in found.item_of.items()} == {
        "step_9/movie/1_a.mp4": "movie",
        "anime/1_a.mp4": "anime",
        "2.mp4": "anime",
    }
    assert found.extra == (Path("movie/2.mp4"),), "clip 2 of anime does not lie in movie's folder"
    with pytest.raises(MovaError, match="1 of movie, 1 of anime"):
        match_files([Path("1_a.mp4")], items)
    with pytest.raises(MovaError, match="several"):
        matched(["001.mp4"], ["1", "01"])
