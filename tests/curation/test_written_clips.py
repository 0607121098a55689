"""Clips that are written as files: what is in them, that they are verified, and that a stopped call goes on."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from lossless_clip import write_lossless

from mova_engine.config.curate_files import WrittenSettings
from mova_engine.config.model import ClipConfig
from mova_engine.curation.accepted_clips import AcceptedClip
from mova_engine.curation.sound_offset import sound_offset
from mova_engine.curation.written_clips import FlawedClipError, verify_clip, write_accepted
from mova_engine.data.clip_edit import NO_EDIT, ClipEdit
from mova_engine.data.clip_sources import read_clips
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.write import encode_mp4, write_mp4
from mova_engine.data.media.write_exact import encode_exact_mp4
from mova_engine.errors import MovaError

SHAPE = ClipConfig(frames=25, height=32, width=48)
RATE = 48000
EXACT, CODED = WrittenSettings(crf=0), WrittenSettings(shard_clips=2)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """A lossless film of 4 s: noise with edges in pictures, noise and clicks as sound."""
    rng = np.random.default_rng(7)
    blocks = rng.integers(0, 256, (96, 9, 12, 3)).astype(np.uint8)
    pictures = blocks.repeat(10, axis=1).repeat(10, axis=2)
    sound = (2000 * rng.standard_normal(4 * RATE)).clip(-30000, 30000).astype(np.int16)
    return write_lossless(tmp_path_factory.mktemp("film") / "film.mkv", pictures, sound, rate=RATE, fps=24)


def clips_of(film: Path) -> list[AcceptedClip]:
    edits = [
        (0.0, NO_EDIT, (120, 90)),
        (0.5, ClipEdit((10, 0, 100, 60), 0.08, -3.0), (100, 60)),
        (1.25, ClipEdit((40, 0, 50, 90)), (50, 90)),
        (2.0, ClipEdit(None, -0.25, 6.0, (160, 90)), (160, 90)),
    ]
    rows = []
    for number, (start, edit, (width, height)) in enumerate(edits):
        row = {"clip_id": f"{number:024x}", "video_path": str(film), "start": start, "caption": f"clip {number} 🎬"}
        crop = dict(zip(("crop_x", "crop_y", "crop_width", "crop_height"), edit.crop or [None] * 4, strict=True))
        told = {"sound_shift": edit.sound_shift, "gain_db": edit.gain_db, "width": width, "height": height}
        if edit.pad:
            told |= {"width": 120, "height": 90, "pad_width": width, "pad_height": height}
        rows.append({**row, **crop, **told})
    clips = [AcceptedClip.of(row) for row in rows]
    assert [(clip.start, clip.edit, clip.size) for clip in clips] == edits
    return clips


def content(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.long
def test_without_loss_written_clips_are_the_virtual_ones_to_the_bit(film, tmp_path):
    clips = clips_of(film)
    for form in ("none", "mp4", "shards"):
        assert write_accepted(tmp_path / form, clips, SHAPE, form, EXACT) == {}
    virtual, *others = [list(read_clips(tmp_path / form)) for form in ("none", "mp4", "shards")]
    assert [entry.edit for entry in virtual] == [clip.edit for clip in clips]
    for number, entry in enumerate(virtual):
        shape = clips[number].shape(SHAPE)
        assert (shape.height > shape.width) == (number == 2)
        wanted = read_clip(entry.path, shape, start=entry.start, edit=entry.edit)
        for other in (some[number] for some in others):
            assert (other.id, other.caption, other.edit, other.start) == (entry.id, entry.caption, NO_EDIT, 0.0)
            assert other.shown is not None and other.shown[:2] == (shape.width, shape.height)
            found = read_clip(other.path, shape)
            assert np.array_equal(found.pictures, wanted.pictures)
            # 24 bits of a sample are kept, which hold 16 bits exactly where no gain has changed them.
            np.testing.assert_allclose(found.audio, wanted.audio, rtol=0, atol=2**-23 if number in (1, 3) else 0)


@pytest.mark.parametrize("form", ["mp4", "shards"])
def test_coded_clips_have_every_picture_and_their_sound_in_place(film, tmp_path, form):
    clips, told = clips_of(film), []
    refused = write_accepted(tmp_path, clips, SHAPE, form, CODED, workers=3, progress=lambda *done: told.append(done))
    assert refused == {} and told == [(n, 4) for n in range(1, 5)]
    entries = list(read_clips(tmp_path))
    assert [entry.id for entry in entries] == [clip.id for clip in clips]
    for entry, clip in zip(entries, clips, strict=True):
        path = tmp_path / f"{entry.id}.mp4"
        path.write_bytes(entry.path.read_bytes() if isinstance(entry.path, Path) else entry.path.read())
        with av.open(str(path)) as container:
            assert sum(1 for _ in container.decode(video=0)) == SHAPE.frames
        offset = sound_offset(path, film, clip.start - clip.edit.sound_shift, SHAPE.duration)
        assert offset.seconds is not None and abs(offset.seconds) < 0.001 and offset.alike > 0.9
        shape = clip.shape(SHAPE)
        made, wanted = read_clip(path, shape), read_clip(film, shape, start=clip.start, edit=clip.edit)
        # H.264 keeps half of the colours' resolution: the brightness is near, also of pictures that are noise.
        grey = [pictures @ [0.2126, 0.7152, 0.0722] for pictures in (made.pictures, wanted.pictures)]
        assert np.corrcoef(grey[0].ravel(), grey[1].ravel())[0, 1] > 0.98
        assert np.corrcoef(made.audio, wanted.audio)[0, 1] > 0.98


@pytest.mark.parametrize("form", ["mp4", "shards"])
def test_a_stopped_call_goes_on_and_the_bytes_are_the_same(film, tmp_path, form):
    clips = clips_of(film)
    write_accepted(tmp_path / "one", clips, SHAPE, form, CODED, workers=1)
    whole = content(tmp_path / "one")
    write_accepted(tmp_path / "two", clips, SHAPE, form, CODED, workers=3)
    assert content(tmp_path / "two") == whole

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_accepted(tmp_path / "three", clips, SHAPE, form, CODED, workers=1, progress=stop)
    part = content(tmp_path / "three")
    assert "metadata.jsonl" not in part and part
    assert all(whole.get(name, digest) == digest for name, digest in part.items())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "three").rglob("*.mp4")}
    write_accepted(tmp_path / "three", clips, SHAPE, form, CODED)
    assert content(tmp_path / "three") == whole
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.exists())
    again = {path: path.stat().st_mtime_ns for path in (tmp_path / "three").rglob("*") if path.name != "metadata.jsonl"}
    write_accepted(tmp_path / "three", clips, SHAPE, form, CODED)
    files = {path: when for path, when in again.items() if path.is_file()}
    assert all(path.stat().st_mtime_ns == when for path, when in files.items())


@pytest.mark.long
def test_a_shard_that_lacks_a_clip_is_written_anew_where_that_is_asked_for(film, tmp_path):
    moved = tmp_path / "film.mkv"
    clips = [*clips_of(film)[:1], replace(clips_of(film)[1], path=moved)]
    assert list(write_accepted(tmp_path / "out", clips, SHAPE, "shards", CODED)) == [clips[1].id]
    moved.write_bytes(film.read_bytes())
    assert list(write_accepted(tmp_path / "out", clips, SHAPE, "shards", CODED)) == [clips[1].id]
    assert write_accepted(tmp_path / "out", clips, SHAPE, "shards", CODED, retry=True) == {}
    assert len(list(read_clips(tmp_path / "out"))) == 2


def test_two_calls_that_write_the_same_shards_at_once_both_end_well(film, tmp_path):
    clips = clips_of(film)
    write_accepted(tmp_path / "alone", clips, SHAPE, "shards", CODED)

    def other(done, total):
        """Another call that begins when this one has its first clip, and is done before it goes on."""
        if done == 1:
            assert write_accepted(tmp_path / "both", clips, SHAPE, "shards", CODED) == {}

    assert write_accepted(tmp_path / "both", clips, SHAPE, "shards", CODED, progress=other) == {}
    assert content(tmp_path / "both") == content(tmp_path / "alone")


def test_other_settings_edits_and_captions_are_other_files(film, tmp_path):
    clips = clips_of(film)[:2]
    write_accepted(tmp_path, clips, SHAPE, "mp4", CODED)
    first = set((tmp_path / "clips").rglob("*.mp4"))
    write_accepted(tmp_path, clips, SHAPE, "mp4", WrittenSettings(crf=30))
    assert len(set((tmp_path / "clips").rglob("*.mp4")) - first) == 2
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and not {str(path.relative_to(tmp_path)) for path in first} & {r["video_path"] for r in rows}


@pytest.mark.long
def test_clips_that_cannot_be_written_are_told_and_the_others_listed(film, tmp_path):
    # Cropped to the clips' size: each reader that meets a bad file is replaced, and resizing loads much into it.
    cut = {"size": (48, 32), "edit": ClipEdit((0, 0, 48, 32))}
    good, other = (replace(clip, **cut) for clip in clips_of(film)[:2])
    odd = film.parent / "a\nfilm.mkv"
    odd.write_bytes(film.read_bytes())
    gone = AcceptedClip("gone", film.parent / "gone.mkv", 0.0, "", (120, 90), NO_EDIT)
    short = AcceptedClip("short", film, 3.5, "", (120, 90), NO_EDIT)
    named = replace(good, id="odd", path=odd)
    torn = AcceptedClip("torn", film, 0.0, "half \ud800", (120, 90), NO_EDIT)
    clips = [good, gone, short, named, torn, other]
    for form, listed in (("mp4", [good.id, "odd", other.id]), ("shards", [good.id, "odd", other.id])):
        refused = write_accepted(tmp_path / form, clips, SHAPE, form, CODED)
        assert [entry.id for entry in read_clips(tmp_path / form)] == listed
        assert refused.keys() == {"gone", "short", "torn"}
        assert "no such file" in refused["gone"] and "too short" in refused["short"] and "surrogate" in refused["torn"]
        # Also where the shards are there already.
        assert write_accepted(tmp_path / form, clips, SHAPE, form, CODED) == refused
    refused = write_accepted(tmp_path / "none", clips, SHAPE, "none", CODED)
    assert refused.keys() == {"odd", "torn"} and "control character" in refused["odd"]
    (tmp_path / "file").touch()
    with pytest.raises(MovaError, match="cannot write"):
        write_accepted(tmp_path / "file", clips, SHAPE, "mp4", CODED)


def written(
    path: Path, film: Path, clip: AcceptedClip, late: int, frames: int = SHAPE.frames, width: int = SHAPE.width
):
    read = read_clip(film, SHAPE, start=clip.start, edit=clip.edit)
    sound = np.roll(read.audio, late)
    write_mp4(path, read.pictures[:frames, :, :width], sound)
    return path


@pytest.mark.parametrize("late", [-480, -200, -24, 0, 24, 200, 480, 9600])
def test_sound_that_is_off_by_more_than_5_ms_is_found(film, tmp_path, late):
    clip = clips_of(film)[1]
    path = written(tmp_path / "late.mp4", film, clip, late)
    offset = sound_offset(path, film, clip.start - clip.edit.sound_shift, SHAPE.duration)
    assert offset.seconds is not None and abs(offset.seconds - late / RATE) < 1e-4
    if abs(late) <= 240:
        verify_clip(path, clip, SHAPE)
    else:
        with pytest.raises(FlawedClipError, match=re.escape(f"its sound is {late / 48:+.1f} ms off")):
            verify_clip(path, clip, SHAPE)


def test_other_flaws_are_found(film, tmp_path):
    clip = clips_of(film)[1]
    with pytest.raises(FlawedClipError, match="it has 24 pictures, not 25"):
        verify_clip(written(tmp_path / "a.mp4", film, clip, 0, frames=24), clip, SHAPE)
    with pytest.raises(FlawedClipError, match="its pictures are 32x32"):
        verify_clip(written(tmp_path / "b.mp4", film, clip, 0, width=32), clip, SHAPE)
    read = read_clip(film, SHAPE, start=2.5)
    write_mp4(tmp_path / "c.mp4", read.pictures, read.audio)
    with pytest.raises(FlawedClipError, match="its sound is not that of its film"):
        verify_clip(tmp_path / "c.mp4", clip, SHAPE)
    (tmp_path / "d.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:3000])
    with pytest.raises(FlawedClipError, match="it cannot be verified"):
        verify_clip(tmp_path / "d.mp4", clip, SHAPE)


def test_a_tone_is_in_place_wherever_its_periods_are_alike(tmp_path):
    """Its correlation is the same a period later, which is no offset; silence has none."""
    pictures = np.zeros((48, 32, 48, 3), np.uint8)
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.int16)
    for name, sound in (("tone", tone), ("silence", np.zeros_like(tone))):
        film = write_lossless(tmp_path / f"{name}.mkv", pictures, sound, rate=RATE, fps=24)
        clip = AcceptedClip(name, film, 0.5, "", (48, 32), NO_EDIT)
        assert write_accepted(tmp_path / name, [clip], SHAPE, "mp4", CODED) == {}
        offset = sound_offset(next((tmp_path / name).rglob("*.mp4")), film, 0.5, SHAPE.duration)
        assert offset.flaw is None and (offset.seconds is None) == (name == "silence")


def test_an_exact_file_holds_what_it_was_given_and_always_the_same(tmp_path):
    rng = np.random.default_rng(3)
    shape = ClipConfig(frames=5, height=16, width=32)
    video = rng.integers(0, 256, (5, 16, 32, 3)).astype(np.uint8)
    sound = rng.integers(-(1 << 23), 1 << 23, shape.audio_samples) / np.float32(1 << 23)
    data = encode_exact_mp4("x.mp4", video, sound.astype(np.float32), 24.0, RATE)
    (tmp_path / "x.mp4").write_bytes(data)
    found = read_clip(tmp_path / "x.mp4", shape)
    assert np.array_equal(found.pictures, video) and np.array_equal(found.audio, sound.astype(np.float32))
    assert encode_exact_mp4("x.mp4", video, sound.astype(np.float32), 24.0, RATE) == data
    for wrong in ((video[..., :1], sound), (video[:0], sound), (video, sound[None])):
        with pytest.raises(MovaError, match="x.mp4: (video|audio) must be"):
            encode_exact_mp4("x.mp4", *wrong, 24.0, RATE)


def test_one_thread_makes_the_bytes_that_the_files_of_clips_have():
    """Of several the encoder makes other ones, by their number."""
    video = np.random.default_rng(1).integers(0, 256, (9, 22, 40, 3)).astype(np.uint8).repeat(8, 1).repeat(8, 2)
    one, again, three = (encode_mp4("x", video, np.zeros(18000), threads=threads) for threads in (1, 1, 3))
    assert one == again != three


WRITES = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from curation.test_written_clips import CODED, SHAPE, clips_of
from mova_engine.curation.written_clips import write_accepted
write_accepted(Path(sys.argv[3]), clips_of(Path(sys.argv[2])), SHAPE, sys.argv[4], CODED, workers=2)
"""


def kept(folder: Path) -> dict[str, str]:
    """What has its name: no file that is being written, nor those that are put into shards."""
    return {name: x for name, x in content(folder).items() if not re.search(r"(^|/)\.|\.parts/", name)}


def count_mp4(folder: Path) -> int:
    """Whole files of clips, also while others are written and removed."""
    return sum(name.endswith(".mp4") for _, _, names in os.walk(folder) for name in names)


@pytest.mark.long
@pytest.mark.parametrize("form", ["mp4", "shards"])
def test_a_killed_process_leaves_whole_files_and_the_next_ends_as_if_undisturbed(film, tmp_path, form):
    write_accepted(tmp_path / "whole", clips_of(film), SHAPE, form, CODED)
    whole = content(tmp_path / "whole")
    tests = Path(__file__).parents[1]
    given = [sys.executable, "-c", WRITES, str(tests), str(film), str(tmp_path / "killed"), form]
    for wanted in (1, 3):
        process = subprocess.Popen(given)
        while count_mp4(tmp_path / "killed") < wanted and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        assert kept(tmp_path / "killed").items() <= whole.items()
    assert subprocess.run(given, check=False).returncode == 0
    assert kept(tmp_path / "killed") == whole
