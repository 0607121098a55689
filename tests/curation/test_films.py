"""The raw films: what their truth says is what their files show and sound like, measured by other code."""

import json

import numpy as np
import pytest

from mova_engine.commands.nano_films import main
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic import films
from mova_engine.data.synthetic.films import BARS, SHARES, draw_film, generate_films
from mova_engine.errors import MovaError
from mova_engine.scores.bounce_events import RATE, events, find_clicks, read_streams
from mova_engine.scores.clip_bounces import bounce_numbers

FRAMES = 33


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two short films, of which every scene draws its own sound."""
    folder = tmp_path_factory.mktemp("films")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(films, "SHORTEST", 12.0)
        patch.setattr(films, "LONGEST", 16.0)
        patch.setattr(films, "RUN", (1, 1))
        generate_films(folder, 2, seed=3)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    """[(truth, pictures, their times, sound)] of the films."""
    return [
        (json.loads(path.with_suffix(".json").read_text()), *read_streams(path)) for path in folder.glob("film_*.mp4")
    ]


def test_films_are_long_letterboxed_and_captioned(folder, opened):
    captions = {entry.path.stem: entry.caption for entry in read_metadata(folder)}
    for truth, frames, _, sound in opened:
        bar = truth["bar"]
        assert captions[truth["film"]] == truth["caption"] and truth["colour"] in truth["caption"]
        assert bar in BARS and frames.shape == (truth["frames"], 96 + 2 * bar, 96, 3)
        assert frames[:, :bar].max() < 8 and frames[:, -bar:].max() < 8  # black, but for the codec
        assert frames[:, bar].mean(-1).min() > 20 and frames[:, -bar - 1].mean(-1).min() > 20
        assert len(sound) == pytest.approx(truth["frames"] / 24 * RATE, abs=RATE / 24)


def test_the_picture_changes_at_the_cuts_and_nowhere_as_much(opened):
    for truth, frames, *_ in opened:
        changes = np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3))
        assert {i + 1 for i in np.flatnonzero(changes > 20)} == {round(cut * 24) for cut in truth["cuts"]}


def test_scenes_sound_as_their_truth_says(opened):
    met = set()
    for truth, frames, times, sound in opened:
        for scene in truth["scenes"]:
            first = round(scene["start"] * 24)
            shown = slice(first, first + FRAMES)
            heard = sound[round(scene["start"] * RATE) :][: FRAMES * RATE // 24]
            if scene["card"]:
                assert np.ptp(frames[first : first + scene["frames"], truth["bar"] + 2 : -truth["bar"] - 2]) < 12
                continue
            met.add(scene["sound"])
            picture = frames[shown, truth["bar"] : truth["bar"] + 96]
            seen = events("clip", picture, times[shown] - times[first], heard)
            wanted = [t - scene["start"] for t in scene["bounces"] if t - scene["start"] < (FRAMES - 3) / 24]
            assert seen.bounces[: len(wanted)] == pytest.approx(wanted, abs=0.02)
            if scene["sound"] == "silent":
                assert not find_clicks(heard[RATE // 4 :])  # a click of the scene before may fade out
                continue
            numbers = bounce_numbers(seen).values
            assert numbers["bounce_offset"] == pytest.approx(scene["lead"], abs=0.012)
            quiet = np.median(np.abs(heard))
            assert (quiet > films.NOISE / 3) == (scene["sound"] == "noisy")
    assert len(met) >= 3


def test_all_kinds_of_sound_come_and_a_film_depends_on_seed_and_index_alone():
    found = [scene.sound for index in range(48) for scene in draw_film(0, index).scenes if scene.clip]
    for name, share in SHARES.items():
        assert found.count(name) / len(found) == pytest.approx(share, abs=0.06)
    assert draw_film(0, 5) == draw_film(0, 5) != draw_film(1, 5)
    lengths = [draw_film(0, index).frames / 24 for index in range(48)]
    assert 30 <= min(lengths) < 35 and 55 < max(lengths) <= 60


def test_the_command_writes_what_it_says_and_replaces_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(films, "SHORTEST", 3.0)
    monkeypatch.setattr(films, "LONGEST", 6.0)
    assert main([str(tmp_path / "raw"), "--films", "1"]) == 0
    assert "wrote 1 film with" in capsys.readouterr().out
    with pytest.raises(MovaError, match="already holds clips"):
        main([str(tmp_path / "raw"), "--films", "1"])
