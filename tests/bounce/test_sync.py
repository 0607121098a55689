"""The score: matching, what counts as missing or extra, chance, intervals; and that spoiled clips score worse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mova_engine.codecs import build_audio_codec, build_video_codec, video_from_uint8, video_to_uint8
from mova_engine.commands.nano_sync import main
from mova_engine.config.model import get_preset
from mova_engine.data.media.decode import read_clip
from mova_engine.data.media.write import write_mp4
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic import bounce
from mova_engine.errors import MovaError
from mova_engine.scores import bounce_sync
from mova_engine.scores.bounce_events import Events, observe
from mova_engine.scores.bounce_sync import agree, match, measure, named_colour, score

LAST = 32 / 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heldout")
    bounce.generate(folder, 24, seed=5, split="heldout")
    return folder


@pytest.fixture(scope="module")
def observed(folder) -> list[Events]:
    return [observe(entry.path, entry.caption) for entry in read_metadata(folder)]


def f1(report: dict, milliseconds: int = 84, sound: str = "own_sound") -> float:
    return report[sound][f"within_{milliseconds}_ms"]["f1"].value


def shifted(clips: list[Events], seconds: float) -> list[Events]:
    return [replace(clip, clicks=tuple(click + seconds for click in clip.clicks)) for clip in clips]


def clip(bounces=(), clicks=(), **fields) -> Events:
    return Events("x.mp4", LAST, tuple(bounces), tuple(clicks), (1000.0,) * len(clicks), "red", **fields)


def test_true_clips_score_full_marks(folder, observed):
    report = measure(folder)
    assert report == score(observed) | {"unreadable_clips": 0}
    assert report["clips"] == 24 and report["silent_clips"] == report["still_clips"] == 0
    assert f1(report, 84) == f1(report, 167) == 1
    assert report["own_sound"]["median_error_ms"].value < 2
    assert report["pitch_matches_caption"].value == report["colour_matches_caption"].value == 1
    assert f1(report, 84, "shuffled_sound") < 0.35 and f1(report, 167, "shuffled_sound") < 0.65
    assert report["shuffled_sound"]["median_error_ms"].value > 80


def test_the_embedded_codecs_and_the_file_writer_keep_the_score(folder, tmp_path):
    """What a perfect model could reach: real clips through codec and mp4."""
    video_codec, audio_codec = build_video_codec("dct"), build_audio_codec("mdct")
    for entry in read_metadata(folder)[:12]:
        true = read_clip(entry.path, get_preset("nano").clip)
        latents = video_codec.encode(video_from_uint8(torch.from_numpy(true.video)[None]))
        sound = audio_codec.decode(audio_codec.encode(torch.from_numpy(true.audio)[None, None]))
        write_mp4(
            tmp_path / entry.path.name, video_to_uint8(video_codec.decode(latents))[0].numpy(), sound[0, 0].numpy()
        )
    lines = (folder / "metadata.jsonl").read_text().splitlines()[:12]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    report = measure(tmp_path)
    assert f1(report) >= 0.95 and report["own_sound"]["median_error_ms"].value < 10
    assert report["pitch_matches_caption"].value == report["colour_matches_caption"].value == 1


def test_sound_moved_in_the_file_loses_the_match(folder, tmp_path):
    for entry in read_metadata(folder)[:8]:
        true = read_clip(entry.path, get_preset("nano").clip)
        late = np.concatenate([np.zeros(12000, np.float32), true.audio])[: len(true.audio)]  # six frames
        write_mp4(tmp_path / entry.path.name, true.video, late)
    report = measure(tmp_path)
    assert f1(report, 84) == f1(report, 167) == 0
    assert report["own_sound"]["median_error_ms"].value == pytest.approx(250, abs=2)


@pytest.mark.parametrize("milliseconds, within_84, within_167", [(-70, 1, 1), (120, 0, 1), (-120, 0, 1), (200, 0, 0)])
def test_a_known_lag_is_measured(observed, milliseconds, within_84, within_167):
    report = score(shifted(observed, milliseconds / 1000))
    assert f1(report, 84) == pytest.approx(within_84, abs=0.05) and f1(report, 167) == pytest.approx(
        within_167, abs=0.1
    )
    assert report["own_sound"]["median_error_ms"].value == pytest.approx(abs(milliseconds), abs=3)


def test_smaller_tolerances_tell_smaller_lags_apart():
    clip = Events("a", LAST, (0.3, 0.9), (0.315, 0.95), (500.0, 500.0), "red")
    report = score([clip], tolerances_ms=(10, 20, 60))
    assert [f1(report, tolerance) for tolerance in (10, 20, 60)] == [0.0, 0.5, 1.0]


def test_shuffling_the_sounds_of_true_clips_gives_the_figure_of_chance(observed):
    rng = np.random.default_rng(1)
    order = rng.permutation(len(observed))
    swapped = [replace(observed[i], clicks=observed[j].clicks) for i, j in zip(order, np.roll(order, 1), strict=True)]
    chance = score(observed)["shuffled_sound"]["within_84_ms"]["f1"]
    assert f1(score(swapped)) == pytest.approx(chance.value, abs=0.15)
    # A derangement: of two clips each hears the other, never itself.
    two = [clip([0.4], [0.4]), clip([0.9], [0.9])]
    assert f1(score(two)) == 1 and f1(score(two), sound="shuffled_sound") == 0
    assert score(two[:1])["shuffled_sound"] is None


def test_wrong_pitch_and_wrong_colour_are_told(observed):
    names = list(bounce.COLOURS)
    other = {name: names[(i + 1) % len(names)] for i, name in enumerate(names)}
    recaptioned = [replace(c, caption=c.caption.replace(c.colour, other[c.colour])) for c in observed]
    report = score(recaptioned)
    assert report["pitch_matches_caption"].value == report["colour_matches_caption"].value == 0 and f1(report) == 1
    half = [replace(c, pitches=(3000.0,) * len(c.pitches)) if i % 2 else c for i, c in enumerate(observed)]
    assert 0.3 < score(half)["pitch_matches_caption"].value < 0.7
    unseen = [replace(c, colour=None) for c in observed]
    assert score(unseen)["colour_matches_caption"].value == 0
    unknown = score([replace(c, caption=None) for c in observed])
    assert np.isnan(unknown["pitch_matches_caption"].value) and np.isnan(unknown["colour_matches_caption"].value)


def test_silent_clips_are_misses(observed):
    silent = [replace(c, clicks=(), pitches=()) if i % 3 == 0 else c for i, c in enumerate(observed)]
    report = score(silent)
    figures = report["own_sound"]["within_84_ms"]
    assert report["silent_clips"] == 8
    assert figures["precision"].value == 1 and figures["recall"].value == pytest.approx(2 / 3, abs=0.1)
    mute = score([replace(c, clicks=(), pitches=()) for c in observed])
    assert f1(mute) == 0 and mute["own_sound"]["within_84_ms"]["recall"].value == 0
    assert np.isnan(mute["own_sound"]["median_error_ms"].value)


def test_still_clips_are_misses_even_when_silent(observed):
    still = [replace(c, bounces=()) for c in observed]
    assert f1(score(still)) == 0 and score(still)["still_clips"] == 24
    nothing = [replace(c, bounces=(), clicks=(), pitches=()) for c in observed[:12]]
    assert f1(score([*nothing, *observed[12:]])) < 0.9


def test_missing_and_extra_events_count():
    assert agree(*[clip([0.3, 0.9], [0.31])] * 2).missed == (1, 1)
    extra = agree(*[clip([0.3], [0.31, 0.6])] * 2)
    assert extra.hits == extra.extra == (1, 1) and extra.missed == (0, 0)
    # Two clicks cannot share a bounce.
    assert agree(*[clip([0.5], [0.48, 0.52])] * 2).extra == (1, 1)
    report = score([clip([0.3, 0.9], [0.31, 0.5, 0.7])])
    figures = report["own_sound"]["within_84_ms"]
    assert [figures[name].value for name in ("precision", "recall", "f1")] == pytest.approx([1 / 3, 1 / 2, 2 / 5])


def test_events_at_the_clips_end_may_pair_but_are_not_missed():
    end = LAST - 0.02
    lonely_click, lonely_bounce = agree(*[clip([0.5], [0.5, end])] * 2), agree(*[clip([0.5, end], [0.5])] * 2)
    assert lonely_click.extra == lonely_bounce.missed == (0, 0)
    assert agree(*[clip([0.5, end], [0.5, end])] * 2).hits == (2, 2)
    early = LAST - 0.1
    assert agree(*[clip([0.5], [0.5, early])] * 2).extra == (1, 1)


def test_matching_is_optimal_not_greedy():
    # The nearest pair alone would leave the others without a partner.
    assert match([0.50, 0.58], [0.55, 0.62], 0.084) == [(0, 0), (1, 1)]
    assert match([0.5], [0.6], 0.084) == match([], [0.5]) == match([0.5], []) == []
    assert match([0.1, 0.9], [0.5, 0.88]) == [(0, 0), (1, 1)]
    rng = np.random.default_rng(0)
    for _ in range(50):
        bounces, clicks = rng.uniform(0, 1, 3), rng.uniform(0, 1, 3)
        near = [(i, j) for i in range(3) for j in range(3) if abs(bounces[i] - clicks[j]) <= 0.2]
        most = max(len(s) for s in _matchings(near))
        assert len(match(bounces, clicks, 0.2)) == most


def _matchings(pairs):
    yield []
    for k, (i, j) in enumerate(pairs):
        for rest in _matchings([p for p in pairs[k + 1 :] if p[0] != i and p[1] != j]):
            yield [(i, j), *rest]


def test_intervals_hold_the_value_and_narrow_with_more_clips(observed):
    mixed = [replace(c, clicks=()) if i % 4 == 0 else c for i, c in enumerate(observed)]
    few, many = (score(clips)["own_sound"]["within_84_ms"]["f1"] for clips in (mixed[:12], mixed * 4))
    for figure in (few, many):
        assert figure.low < figure.value < figure.high
    assert many.high - many.low < 0.6 * (few.high - few.low)
    assert score(mixed, seed=1) == score(mixed, seed=1) != score(mixed, seed=2)


@pytest.mark.parametrize(
    "caption, colour",
    [("a Red ball", "red"), ("blue on white", None), ("a ball", None), (None, None), ("a reddish ball", None)],
)
def test_the_caption_names_one_colour(caption, colour):
    assert named_colour(caption) == colour


def test_the_command_prints_a_table_and_writes_json(folder, tmp_path, capsys):
    path = tmp_path / "report.json"
    assert main([str(folder), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "24 clips" in printed and "own sound" in printed and "shuffled sound" in printed
    written = json.loads(path.read_text())
    assert written["kind"] == "bounce-sync"
    assert written["circumstances"]["device"] == "cpu"
    report = written["report"]
    assert report["own_sound"]["within_84_ms"]["f1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    mute = json.dumps(bounce_sync.plain(score([clip([0.5])])))
    assert json.loads(mute)["own_sound"]["median_error_ms"]["value"] is None and "NaN" not in mute


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(MovaError, match="no mp4 files"):
        measure(tmp_path)
    with pytest.raises(MovaError, match="no clips"):
        score([])
