"""Crops, shifts of the sound and gains: a film that is edited when it is read is the film that was edited by hand."""

import hashlib
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from data_pipeline.test_manifests import write_csv, write_parquet
from data_pipeline.test_upright import write_video
from lossless_clip import write_lossless

from mova_engine.config.model import ClipConfig
from mova_engine.data.clip_changes import compare, marks
from mova_engine.data.clip_check import check_clips
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.clip_sizes import ClipSizes
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.resize import finish
from mova_engine.data.metadata import Entry, entry_of
from mova_engine.data.preview import preview
from mova_engine.data.shard_index import write_index
from mova_engine.errors import MovaError
from mova_engine.evaluation.clip_captions import captions_of
from mova_engine.inference.requests import read_prompts

CLIP = ClipConfig(frames=9, height=32, width=48)
RATE = 48000


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """(path, pictures uint8 [24, 90, 120, 3], sound int16 [n]) of a lossless film of one second."""
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (24, 90, 120, 3)).astype(np.uint8)
    sound = (8000 * rng.standard_normal(RATE)).clip(-30000, 30000).astype(np.int16)
    path = tmp_path_factory.mktemp("film") / "film.mkv"
    return write_lossless(path, pictures, sound, rate=RATE, fps=24), pictures, sound


def by_hand(path, pictures, sound):
    return read_clip(write_lossless(path, np.ascontiguousarray(pictures), sound, rate=RATE, fps=24), CLIP)


@pytest.mark.parametrize(
    "crop", [(10, 20, 48, 32), (0, 0, 120, 45), (7, 3, 66, 87), (119, 89, 1, 1)], ids=["the clip's size", "a", "b", "c"]
)
def test_a_crop_is_the_film_that_was_cropped_by_hand(film, tmp_path, crop):
    path, pictures, sound = film
    x, y, width, height = crop
    hand = by_hand(tmp_path / "hand.mkv", pictures[:, y : y + height, x : x + width], sound)
    found = read_clip(path, CLIP, edit=ClipEdit(crop))
    assert np.array_equal(found.pictures, hand.pictures) and np.array_equal(found.audio, hand.audio)
    assert not np.array_equal(found.pictures, read_clip(path, CLIP).pictures)


@pytest.mark.parametrize(
    ("crop", "pad"), [(None, (160, 90)), ((0, 0, 120, 60), (120, 151)), ((9, 8, 50, 61), (77, 99))]
)
def test_around_a_padded_picture_there_is_black_alone(film, tmp_path, crop, pad):
    """Whatever the film shows beside the crop."""
    path, pictures, sound = film
    x, y, width, height = crop or (0, 0, 120, 90)
    black = np.zeros((24, pad[1], pad[0], 3), np.uint8)
    top, left = (pad[1] - height) // 2, (pad[0] - width) // 2
    black[:, top : top + height, left : left + width] = pictures[:, y : y + height, x : x + width]
    hand = by_hand(tmp_path / "hand.mkv", black, sound)
    assert np.array_equal(read_clip(path, CLIP, edit=ClipEdit(crop, pad=pad)).pictures, hand.pictures)


def test_a_crop_of_another_file_is_refused(film):
    with pytest.raises(MovaError, match=r"film.mkv: the crop \[100, 80, 21, 10\] is not within .* which are 120x90"):
        read_clip(film[0], CLIP, edit=ClipEdit((100, 80, 21, 10)))
    with pytest.raises(MovaError, match=r"film.mkv: the pad \[120, 80\] is less than .* which is 120x90"):
        read_clip(film[0], CLIP, edit=ClipEdit(pad=(120, 80)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_crop_counts_upright_square_pixels(orientation):
    """Stored 60x40 with pixels twice as wide: shown 120x40, or 40x120 where the sides are swapped."""
    stored = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    wide = np.repeat(stored, 2, axis=1)
    upright = finish(wide, None, None, orientation, *((120, 40) if orientation > 4 else (40, 120)))
    crop = (8, 20, 16, 48) if orientation > 4 else (20, 8, 48, 16)
    x, y, width, height = crop
    hand = upright[y : y + height, x : x + width]
    # Of the wide pixels every other column, or row, is the same: taking one of two is exact.
    found = finish(stored, None, None, orientation, *hand.shape[:2], 2.0, ClipEdit(crop))
    narrow = hand[::2] if orientation > 4 else hand[:, ::2]
    assert np.array_equal(found, finish(narrow, None, None, 1, *hand.shape[:2], 0.5 if orientation > 4 else 2.0))


def test_transparent_pictures_are_cropped_with_what_stands_behind_them():
    rng = np.random.default_rng(2)
    values, alpha = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8), rng.integers(0, 256, (40, 60)).astype(np.uint8)
    found = finish(values, alpha, None, 1, 20, 30, edit=ClipEdit((10, 5, 30, 20)))
    assert np.array_equal(found, finish(values, alpha, None, 1, 40, 60)[5:25, 10:40])


@pytest.mark.parametrize("shift", [0.0125, -0.0125, 1 / RATE, -0.25, 0.4 / RATE, 0.6 / RATE])
def test_sound_is_moved_to_the_sample(film, shift):
    """Also sound that other pictures of the film have moves in, and zeros where there is none."""
    path, _, sound = film
    start, samples = 0.125, round(shift * RATE)
    found = read_clip(path, CLIP, start=start, edit=ClipEdit(sound_shift=shift))
    first = round(start * RATE) - samples
    expected = sound[first : first + CLIP.audio_samples] / np.float32(32768)
    assert np.array_equal(found.audio, expected)
    assert np.array_equal(found.pictures, read_clip(path, CLIP, start=start).pictures)
    alone = read_clip(path, CLIP, start=start, pictures=False, edit=ClipEdit(sound_shift=shift))
    assert np.array_equal(alone.audio, expected)


def test_before_a_files_first_sample_there_is_silence(film):
    path, _, sound = film
    found = read_clip(path, CLIP, edit=ClipEdit(sound_shift=0.1)).audio
    assert not found[:4800].any()
    # A fade of 2 ms where sound begins within the clip, as for any late track.
    assert np.array_equal(found[4896:], sound[96 : CLIP.audio_samples - 4800] / np.float32(32768))
    with pytest.raises(MovaError, match="its sound covers only"):
        read_clip(path, CLIP, edit=ClipEdit(sound_shift=0.3))


def test_a_gain_is_its_factor_and_does_not_clip(film):
    path, _, _ = film
    plain = read_clip(path, CLIP).audio
    assert np.array_equal(read_clip(path, CLIP, edit=ClipEdit(gain_db=-6.0)).audio, plain * np.float32(10**-0.3))
    loud = read_clip(path, CLIP, edit=ClipEdit(gain_db=12.0)).audio
    assert np.abs(loud).max() == 1.0
    np.testing.assert_allclose(loud / plain.max(), plain / plain.max() / np.abs(plain).max(), atol=1e-6)


EDIT = ClipEdit((8, 0, 100, 90), -0.025, 3.5, (160, 90))
ROW = {"video_path": "film.mkv", "caption": "noise", "crop": [8, 0, 100, 90], "pad": [160, 90]}
ROW |= {"sound_shift": -0.025, "gain_db": 3.5}


def rows_of(count=3):
    """Rows of which each third has an edit of each kind, then none; ids of their own."""
    cropped = {k: v for k, v in ROW.items() if k in ("video_path", "caption", "crop")}
    rows = [ROW, cropped, {**ROW, "crop": None, "pad": None}]
    bare = {"video_path": "film.mkv", "caption": "noise"}
    return [{**row, "id": str(i)} for i, row in enumerate([bare, *rows, bare][:count])]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "parquet of text", "a table", "a table of Parquet"])
def test_every_form_of_list_tells_the_same_edits(tmp_path, form):
    rows = rows_of(5)
    if form in ("jsonl", "a table"):
        path = tmp_path / "clips.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "csv":
        keys = ("video_path", "caption", "id", "crop", "pad", "sound_shift", "gain_db")
        path = write_csv(tmp_path / "clips.csv", [{key: row.get(key) or "" for key in keys} for row in rows])
    else:
        texts = [{**row, **{key: row.get(key) and json.dumps(row[key]) for key in ("crop", "pad")}} for row in rows]
        path = write_parquet(tmp_path / "clips.parquet", texts if "text" in form else rows)
    found = read_clips(path, listed=2 if "table" in form else 100)
    assert isinstance(found, list) != ("table" in form)
    edits = [entry.edit for entry in found]
    assert edits == [NO_EDIT, EDIT, ClipEdit(EDIT.crop), ClipEdit(None, -0.025, 3.5), NO_EDIT]
    assert [entry.edit.facts for entry in found][2] == {"crop": (8, 0, 100, 90)}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("crop", [0, 0, 10], r"key 'crop' must be \[x, y, width, height\] in whole pixels, got \[0, 0, 10\]"),
        ("crop", [0, 0, 10, 0], "'crop' must be"),
        ("crop", [-1, 0, 10, 10], "'crop' must be"),
        ("pad", [160, 90, 1], r"key 'pad' must be \[width, height\] in whole pixels, got \[160, 90, 1\]"),
        ("pad", [0, 90], "'pad' must be"),
        ("crop", [0, 0, 10.5, 10], "'crop' must be"),
        ("crop", [0, 0, True, 10], "'crop' must be"),
        ("crop", [0, 0, 1e9, 10], "'crop' must be"),
        ("crop", "all", "'crop' must be .* got \"all\""),
        ("crop", {"x": 1}, "'crop' must be"),
        ("sound_shift", "late", "key 'sound_shift' must be seconds from -3600 to 3600, got \"late\""),
        ("sound_shift", float("nan"), "'sound_shift' must be seconds"),
        ("gain_db", 1000, "key 'gain_db' must be decibels from -100 to 100, got 1000"),
        ("gain_db", True, "'gain_db' must be decibels"),
    ],
)
def test_mistakes_are_one_line_with_the_key(tmp_path, key, value, why):
    with pytest.raises(MovaError, match=f"^here: {why if why.startswith('key') else 'key ' + why}") as caught:
        entry_of(tmp_path, "here", {"video_path": "a.mp4", "caption": "", key: value})
    assert "\n" not in str(caught.value)


def test_a_table_refuses_them_too_and_names_the_row(tmp_path):
    pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path / "clips.parquet", [*rows_of(5), {**ROW, "id": "x", "gain_db": 999.0}])
    with pytest.raises(MovaError, match="row 6: key 'gain_db'"):
        read_clips(path, listed=2)


def test_clips_without_edits_keep_their_place_in_the_cache_and_their_fingerprint(clips, make_cache):
    cache = make_cache()
    entry = Entry(clips / "0.mp4", "words", "0", 1 / 24)
    facts = {**cache._clip_facts, "content": cache.content(entry), "start": entry.start}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    assert cache._clip_path(entry).stem == key
    paths = {cache._clip_path(replace(entry, edit=edit)) for edit in (NO_EDIT, EDIT, ClipEdit(EDIT.crop), ClipEdit())}
    assert len(paths) == 3
    assert entry.told == f"{1 / 24} words"
    then, now = marks([entry], None), marks([replace(entry, edit=EDIT)], None)
    assert compare(then, now, [entry]).contents == "1 caption changed ('0')"
    assert marks([replace(entry, edit=ClipEdit())], None) == then


def test_the_cache_holds_what_the_edit_gives(film, make_cache):
    cache = make_cache(silent="zeros")
    plain, edited = Entry(film[0], "", "a"), Entry(film[0], "", "b", 0.0, None, EDIT)
    one, other = cache.get(plain), cache.get(edited)
    assert not np.array_equal(one["video_latents"], other["video_latents"])
    assert not np.array_equal(one["audio_latents"], other["audio_latents"])
    again = make_cache(silent="zeros").read(edited)
    assert again is not None and np.array_equal(again["video_latents"], other["video_latents"])


def test_the_size_of_a_clip_is_its_crops(film, tmp_path):
    sizes = ClipSizes(tmp_path)
    assert sizes.of(Entry(film[0], "", "a"))[:2] == (120, 90)
    assert sizes.of(Entry(film[0], "", "a", edit=EDIT))[:2] == (160, 90)
    row = {**ROW, "width": 1920, "height": 1080, "duration": 9.0}
    assert entry_of(tmp_path, "here", row).shown == (160, 90, 9.0)


def test_a_check_looks_again_at_a_clip_of_another_crop(film, tmp_path):
    said = []
    for row, count in ((ROW, 0), (ROW, 1), ({**ROW, "crop": [0, 0, 30, 30]}, 0)):
        (film[0].parent / "some.jsonl").write_text(json.dumps(row) + "\n")
        found = check_clips(film[0].parent / "some.jsonl", CLIP, tmp_path / "ledger.jsonl", say=said.append)
        assert found.before == count and not found.kinds


def test_an_index_of_shards_carries_edits(film, tmp_path):
    pytest.importorskip("pyarrow")
    from data_pipeline.fault_server import write_shard

    told = [{**{k: v for k, v in row.items() if k != "video_path"}} for row in rows_of(4)]
    write_shard(tmp_path / "a.tar", {"film.mkv": film[0], "film.json": json.dumps(told).encode()})
    write_index([str(tmp_path / "a.tar")], tmp_path / "index.parquet", sizes=True, say=lambda _: None)
    found = list(read_clips(tmp_path / "index.parquet"))
    assert [entry.edit for entry in found] == [NO_EDIT, EDIT, ClipEdit(EDIT.crop), ClipEdit(None, -0.025, 3.5)]
    assert [entry.shown and entry.shown[:2] for entry in found] == [(120, 90), (160, 90), (100, 90), (120, 90)]
    clip = read_clip(found[1].path, CLIP, edit=found[1].edit)
    assert np.array_equal(clip.pictures, read_clip(film[0], CLIP, edit=EDIT).pictures)


def test_pixels_that_are_not_square_are_cropped_as_they_are_shown(tmp_path):
    """A film of 60x40 stored pixels, twice as wide as high: the crop is of 120x40."""
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (9, 5, 10, 3)).astype(np.uint8).repeat(8, axis=1).repeat(6, axis=2)
    path = tmp_path / "wide.mp4"
    write_video(path, blocks, "libx264rgb", "rgb24", options={"qp": "0"}, aspect=Fraction(2))
    shape = ClipConfig(frames=1, height=16, width=48)
    found = read_clip(path, shape, silent="zeros", edit=ClipEdit((24, 8, 48, 16))).pictures
    hand = finish(blocks[0][8:24, 12:36], None, None, 1, 16, 48, 2.0)
    assert np.array_equal(found[0], hand)


@pytest.fixture
def folder(film, tmp_path):
    """A folder whose list names the film twice, the second time edited."""
    (tmp_path / "film.mkv").write_bytes(film[0].read_bytes())
    rows = [{"video_path": "film.mkv", "caption": "whole", "id": "a"}, {**ROW, "caption": "edited", "id": "b"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_first_frames_are_edited_and_what_is_given_of_a_clip_is_not_to_be(folder, caplog):
    whole, edited = read_prompts(folder, CLIP)
    assert np.array_equal(edited.first_frame, read_clip(folder / "film.mkv", CLIP, edit=EDIT).pictures[0])
    assert not np.array_equal(edited.first_frame, whole.first_frame)
    # The file and a start would not give the edited frame again.
    assert whole.file == folder / "film.mkv" and edited.file is None
    assert [prompt.source for prompt in read_prompts(folder, CLIP, ("none", "all"))] == ["a"]
    assert "the list states crop, sound_shift, gain_db, pad: list a file that is written so" in caplog.text


def test_a_sheet_tells_what_is_done_to_clips_and_scores_take_no_caption_of_a_part(folder, tmp_path):
    pytest.importorskip("matplotlib")
    said = []
    preview(folder, CLIP, tmp_path / "sheet.png", say=said.append)
    assert any(line.startswith("b: ") and "crop (8, 0, 100, 90), sound_shift -0.025" in line for line in said)
    assert not any("crop" in line for line in said if line.startswith("a: "))
    assert captions_of(folder, [folder / "film.mkv"]) == {folder / "film.mkv": "whole"}
