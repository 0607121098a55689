"""The embedded dataset: its physics, what it hides, and its files as the loader and others read them."""

import json
from collections import defaultdict
from dataclasses import replace

import av
import numpy as np
import pytest

from mova_engine.codecs import build_text_encoder
from mova_engine.commands.nano_clips import main
from mova_engine.config.model import get_preset
from mova_engine.data.media.decode import read_clip
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic import bounce
from mova_engine.data.synthetic.bounce import COLOURS, DURATION, HELD_OUT, SPLITS, TEMPI, TRAINED, Bounce, draw
from mova_engine.errors import MovaError

CLIP = Bounce("green", "quick", delay=0.3, column=20.0)


def drawn(count: int, split: str = "train") -> list[Bounce]:
    pairs = SPLITS[split]
    return [draw(np.random.default_rng(i), *pairs[i % len(pairs)]) for i in range(count)]


def test_the_splits_share_every_colour_and_tempo_but_no_pair():
    assert len(HELD_OUT) == 6 and len(TRAINED) == 24 and not set(HELD_OUT) & set(TRAINED)
    for part, known in ((0, COLOURS), (1, TEMPI)):
        assert {pair[part] for pair in HELD_OUT} == {pair[part] for pair in TRAINED} == set(known)


def test_the_ball_rests_then_falls_and_bounces_with_the_tempo():
    assert CLIP.times == pytest.approx((0.6, 1.2))
    assert (CLIP.height(np.linspace(0, 0.3, 20)) == 1).all()
    assert CLIP.height(np.array([0.6, 1.2])) == pytest.approx(0, abs=1e-9)
    assert CLIP.height(np.array([0.9])) == pytest.approx(1)
    # Free fall: the second difference of the height is constant until the floor.
    fall = CLIP.height(np.linspace(0.3, 0.6, 30))
    assert np.ptp(np.diff(fall, 2)) < 1e-9 and fall[-1] < fall[0]


def test_every_clip_shows_its_first_bounce_at_a_moment_spread_over_its_range():
    firsts = defaultdict(list)
    for clip in drawn(24 * 40):
        firsts[clip.tempo].append(clip.times[0])
    for tempo, times in firsts.items():
        period = TEMPI[tempo]
        low, high = period / 2, min(1.5 * period, bounce.LATEST_FIRST_BOUNCE)
        assert low <= min(times) < low + 0.05 and high - 0.05 < max(times) <= high
        assert np.mean(times) == pytest.approx((low + high) / 2, abs=0.05)


def test_the_picture_shows_the_ball_where_physics_puts_it():
    video = bounce.render_video(CLIP).astype(float)
    assert video.shape == (33, 48, 48, 3)
    seen = np.abs(video - video[:, :, :1]).sum(-1)
    rows = (seen.sum(2) @ (np.arange(48) + 0.5)) / seen.sum((1, 2))
    lowest = bounce.FLOOR_TOP - bounce.RADIUS
    expected = lowest - (lowest - bounce.REST_HEIGHT) * CLIP.height(np.arange(33) / 24)
    assert np.abs(rows - expected).max() < 0.05
    assert tuple(video[0, 8, 20]) == COLOURS["green"][0]


def test_a_click_sounds_at_each_bounce_and_nothing_before():
    sound = bounce.render_audio(CLIP)
    assert sound.shape == (66000,) and sound.dtype == np.float32
    first, second = (round(t * 48000) for t in CLIP.times)
    assert not sound[: first + 1].any() and np.abs(sound[first : first + 480]).max() > 0.4
    assert np.abs(sound[second - 480 : second]).max() < 1e-3 < 0.4 < np.abs(sound[second : second + 480]).max()


def test_clicks_of_one_colour_are_in_phase_whenever_they_start():
    """Else the click of each delay would look different to the audio codec."""
    early, late = (bounce.render_audio(replace(CLIP, delay=delay)) for delay in (0.3, 0.3137))
    both = slice(round(0.62 * 48000), round(0.65 * 48000))
    assert np.corrcoef(early[both], late[both])[0, 1] > 0.99
    assert all(carrier % 50 == 0 and 500 <= carrier <= 2250 for _, carrier in COLOURS.values())


def test_clips_begin_in_the_middle_of_the_motion_where_that_is_asked_for():
    pairs = SPLITS["train"]
    clips = [draw(np.random.default_rng(i), *pairs[i % len(pairs)], midway=0.5) for i in range(960)]
    plain = drawn(960)
    midway = [clip.delay < 0 for clip in clips]
    assert np.mean(midway) == pytest.approx(0.5, abs=0.05)
    assert all(a == b for a, b, moved in zip(clips, plain, midway, strict=True) if not moved)
    shares = [-clip.delay / clip.period for clip, moved in zip(clips, midway, strict=True) if moved]
    assert 0 < min(shares) < 0.05 and 0.95 < max(shares) <= 1 and np.mean(shares) == pytest.approx(0.5, abs=0.05)


def test_a_clip_from_the_middle_is_the_end_of_a_longer_one():
    """Half a second later, at which frames, sound and the clicks' phase all begin anew; 0.02 s after a bounce."""
    first, later = (replace(CLIP, delay=delay) for delay in (0.18, 0.18 - 0.5))
    assert later.times == pytest.approx((0.58, 1.18)) and later.contacts[0] == pytest.approx(-0.02)
    whole, end = bounce.render_video(first), bounce.render_video(later)
    assert (end[: 33 - 12] == whole[12:]).all()
    whole, end = bounce.render_audio(first), bounce.render_audio(later)
    assert np.abs(end[: 66000 - 24000] - whole[24000:]).max() < 1e-4
    assert np.abs(end[:480]).max() > 0.2


def test_captions_fit_the_model_and_tell_only_colour_and_tempo(caplog):
    config = get_preset("nano")
    text = build_text_encoder("bytes", tokens=config.text_tokens, dim=config.video.text_dim)
    captions = {(clip.colour, clip.tempo): clip.caption for clip in drawn(60) + drawn(12, "heldout")}
    assert len({bytes(row) for row in text.encode(list(captions.values())).numpy()}) == len(captions) == 30
    assert not caplog.records  # the encoder warns where it cuts
    for (colour, tempo), caption in captions.items():
        assert Bounce(colour, tempo, 0.123, 20.0).caption == caption


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips") / "new" / "train"
    bounce.generate(folder, 72, seed=3)
    return folder


def truth(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_the_loader_reads_the_clips(folder):
    entries, rows = read_metadata(folder), truth(folder)
    assert len(entries) == 72 == len(list(folder.glob("*.mp4")))
    assert {(row["colour"], row["tempo"]) for row in rows} == set(TRAINED)
    row, entry = rows[5], entries[5]
    clip = Bounce(row["colour"], row["tempo"], row["delay"], row["column"])
    assert entry.caption == clip.caption and tuple(row["bounces"]) == clip.times
    read = read_clip(entry.path, get_preset("nano").clip)
    assert np.abs(read.video.astype(float) - bounce.render_video(clip)).mean() < 2
    assert np.abs(read.audio[:66000] - bounce.render_audio(clip)).max() < 0.1


def test_files_are_mp4_with_h264_and_mono_aac(folder):
    with av.open(str(folder / "train_00000.mp4")) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        assert (picture.codec_context.name, picture.width, picture.height) == ("h264", 48, 48)
        assert picture.average_rate == 24 and picture.frames == 33
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 48000, 1)
        assert float(sound.duration * sound.time_base) == pytest.approx(DURATION, abs=0.03)


@pytest.mark.long
def test_the_decoded_first_frame_does_not_tell_the_delay(folder):
    """Rate control may colour the first frame by what follows; it must be the same picture whatever the delay."""
    frames, delays = defaultdict(set), defaultdict(set)
    for row in truth(folder):
        read = read_clip(folder / row["video_path"], get_preset("nano").clip)
        frames[row["colour"], row["column"]].add(read.video[0].tobytes())
        delays[row["colour"], row["column"]].add(row["delay"])
    assert {len(pictures) for pictures in frames.values()} == {1}
    assert sum(len(values) for values in delays.values()) == 72


def test_a_clip_depends_on_seed_split_and_index_alone(folder, tmp_path):
    bounce.generate(tmp_path / "again", 3, seed=3)
    bounce.generate(tmp_path / "other", 3, seed=4)
    assert truth(tmp_path / "again") == truth(folder)[:3]
    assert {row["delay"] for row in truth(tmp_path / "other")}.isdisjoint(row["delay"] for row in truth(folder))
    for row in truth(tmp_path / "again"):
        again, first = (read_clip(f / row["video_path"], get_preset("nano").clip) for f in (tmp_path / "again", folder))
        assert (again.video == first.video).all() and (again.audio == first.audio).all()


def test_the_command_writes_held_out_clips(tmp_path, capsys):
    assert main([str(tmp_path), "--clips", "6", "--seed", "1", "--split", "heldout"]) == 0
    assert "6 clips" in capsys.readouterr().out
    assert {(row["colour"], row["tempo"]) for row in truth(tmp_path)} == set(HELD_OUT)


def test_progress_counts_the_clips(tmp_path):
    seen = []
    bounce.generate(tmp_path, 4, progress=seen.append)
    assert seen == [1, 2, 3, 4]


def test_errors_are_told_in_one_line(folder, tmp_path):
    with pytest.raises(MovaError, match="already holds clips"):
        bounce.generate(folder, 1)
    with pytest.raises(MovaError, match="at least 1"):
        bounce.generate(tmp_path, 0)
    with pytest.raises(MovaError, match="unknown split 'test'"):
        bounce.generate(tmp_path, 1, split="test")
    (tmp_path / "file").write_text("")
    with pytest.raises(MovaError, match="cannot write"):
        bounce.generate(tmp_path / "file", 1)
