"""Captioned notes: what is written says what it is, and what is heard in it is right, wrong, or chance."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from mova_engine.commands.nano_notes import main as measure_command
from mova_engine.commands.nano_sounds import main as write_command
from mova_engine.data.metadata import read_metadata
from mova_engine.data.synthetic import notes
from mova_engine.data.synthetic.notes import HELD_OUT, INSTRUMENTS, KINDS, PITCHES, TRAINED, Notes, generate_sounds
from mova_engine.errors import MovaError
from mova_engine.scores.note_agreement import ONSET_MS, answer, measure_notes, score_notes
from mova_engine.scores.note_events import RATE, NoteEvents, find_fundamental, find_onsets, hear

ASKED = Notes("three", "low", "beep", "soon", "slow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    generate_sounds(folder, 18, seed=5, split="heldout")
    return folder


def as_heard(sound: Notes, caption: str | None = None) -> NoteEvents:
    samples = notes.render(sound).astype(float)
    onsets = find_onsets(samples)
    pitches = tuple(find_fundamental(samples, onset) for onset in onsets)
    return NoteEvents("x.wav", onsets, pitches, caption or sound.caption)


def test_every_word_is_trained_and_every_pair_of_words_that_is_held_out():
    assert len(TRAINED) == 500 and len(HELD_OUT) == 100 and not set(TRAINED) & set(HELD_OUT)
    names = ("count", "pitch", "instrument", "start", "pace")
    for one in names:
        for other in names:
            trained, held = ({(getattr(x, one), getattr(x, other)) for x in of} for of in (TRAINED, HELD_OUT))
            assert held <= trained
    assert max(len(x.caption.split()) for x in (*TRAINED, *HELD_OUT)) <= 11  # what the nano model reads
    assert all(notes.read_caption(x.caption) == x for x in (*TRAINED, *HELD_OUT))
    assert notes.read_caption("a red ball") is None


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_pitch_and_onsets_are_heard_as_they_were_made(instrument):
    rng = np.random.default_rng(0)
    for pitch in PITCHES:
        asked = replace(ASKED, pitch=pitch, instrument=instrument, pace="quick")
        heard = as_heard(notes.draw(rng, asked))
        assert answer(heard, asked).right
        assert all(abs(1200 * math.log2(found / PITCHES[pitch])) < 15 for found in heard.pitches)


@pytest.mark.parametrize(
    ("change", "number", "pitches", "onsets"),
    [
        ({}, True, 3, 3),
        ({"pitch": "deep"}, True, 0, 3),
        ({"start": "later"}, True, 3, 0),
        ({"pace": "quick"}, True, 3, 1),
        ({"count": "two"}, False, 2, 2),
        ({"shift": 0.030}, True, 3, 3),
        ({"shift": 0.045}, True, 3, 0),
        ({"shift": -0.055}, True, 3, 0),
    ],
)
def test_what_is_wrong_counts_as_wrong(change, number, pitches, onsets):
    found = answer(as_heard(replace(ASKED, **change)), ASKED)
    assert (found.number, sum(found.pitches), sum(found.onsets)) == (number, pitches, onsets)
    assert len(found.pitches) == len(found.onsets) == 3
    assert found.right == (number and pitches == onsets == 3)


def test_notes_too_many_and_silence_count_against_a_clip():
    two = answer(as_heard(ASKED), replace(ASKED, count="two"))
    assert not two.number and (sum(two.pitches), sum(two.onsets), len(two.onsets)) == (2, 2, 3)
    nothing = answer(NoteEvents("x", (), ()), ASKED)
    assert nothing.pitches == nothing.onsets == (False,) * 3 and not nothing.right
    assert find_onsets(np.zeros(RATE)) == () == find_onsets(np.zeros(10))
    noise = np.random.default_rng(0).normal(size=RATE)
    assert not any(abs(1200 * math.log2(find_fundamental(noise, t) / 450)) < 50 for t in (0.1, 0.2, 0.3))
    assert math.isnan(find_fundamental(np.zeros(RATE), 0.1)) and math.isnan(find_fundamental(noise, 0.995))


def test_noise_under_the_notes_does_not_hide_them():
    samples = notes.render(ASKED) + 0.02 * np.random.default_rng(0).normal(size=66000)
    onsets = find_onsets(samples)
    assert len(onsets) == 3 and all(abs(a - b) < ONSET_MS / 1000 for a, b in zip(onsets, ASKED.onsets, strict=True))


def test_true_sounds_of_every_format_score_full_marks_and_other_captions_chance(folder, capsys, tmp_path):
    assert {entry.path.suffix for entry in read_metadata(folder)} == set(notes.SUFFIXES)
    report = measure_notes(folder)
    assert report["clips"] == 18 and report["notes_heard"] == report["notes_asked"] and not report["unreadable_clips"]
    assert all(figure.value == 1 for figure in report["own_caption"].values())
    chance = {name: figure.value for name, figure in report["shuffled_captions"].items()}
    assert chance["pitch"] < 0.3 and chance["onset"] < 0.4 and chance["all"] < 0.1
    assert 0 <= report["median_onset_error_ms"] < 15
    assert measure_command([str(folder / "speech"), "--json", str(tmp_path / "r.json")]) == 0
    assert "6 clips" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["report"]["own_caption"]["all"]["value"] == 1


def test_kinds_have_folders_of_their_own_and_all_are_listed_together(folder, tmp_path, capsys):
    whole = read_metadata(folder)
    apart = [entry for kind in KINDS for entry in read_metadata(folder / kind)]
    assert sorted(entry.path for entry in whole) == sorted(entry.path for entry in apart) and len(whole) == 18
    for kind in KINDS:
        words = [name for name, instrument in INSTRUMENTS.items() if instrument.kind == kind]
        assert all(any(word in entry.caption for word in words) for entry in read_metadata(folder / kind))
    assert write_command([str(tmp_path / "new"), "--clips", "6", "--split", "heldout", "--seed", "5"]) == 0
    again = read_metadata(tmp_path / "new")
    assert [entry.caption for entry in again] == [entry.caption for entry in whole[:6]]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(again[:3], whole[:3], strict=True))
    with pytest.raises(MovaError, match="already holds clips"):
        generate_sounds(tmp_path / "new", 6)
    with pytest.raises(MovaError, match="unknown split 'test'"):
        generate_sounds(tmp_path / "other", 6, split="test")
    with pytest.raises(MovaError, match="at least 3, one of each kind"):
        generate_sounds(tmp_path / "other", 2)


def test_what_cannot_be_measured_is_said(tmp_path, folder):
    with pytest.raises(MovaError, match="no clip has a caption of the form"):
        score_notes([NoteEvents("x", (), (), "thunder")])
    (tmp_path / "metadata.jsonl").write_text('{"video_path": "no.wav", "caption": "thunder"}\n')
    with pytest.raises(MovaError, match="none of 1 clip can be read: .*no.wav"):
        measure_notes(tmp_path)
    (tmp_path / "no.wav").write_bytes(b"")
    with pytest.raises(MovaError, match="no.wav"):
        hear(tmp_path / "no.wav")
    alone = score_notes([as_heard(ASKED)])
    assert alone["shuffled_captions"] is None and alone["own_caption"]["all"].value == 1
