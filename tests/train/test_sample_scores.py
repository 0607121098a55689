"""Scores of samples beside the training: in its metrics, never in its way."""

import json
import subprocess
import sys
import time

import pytest

from mova_engine.config.train import ValidationSettings
from mova_engine.errors import MovaError
from mova_engine.train import sample_scores
from mova_engine.train.__main__ import main
from mova_engine.train.metrics import read_metrics
from mova_engine.train.sample_scores import SECONDS, SampleScores, check_scores, sample_folder

SETTINGS = ValidationSettings(every=1, samples=1, synthetic_clips=1, scores=("loudness",))
COLUMNS = [
    {"column": "rms", "mean": 0.25, "scored": 2, "asked": 2, "reasons": {}},
    {"column": "lufs", "mean": None, "scored": 0, "asked": 2, "reasons": {"it has no loudness": 2}},
]


@pytest.fixture
def samples(tmp_path):
    """Samples of steps 1, 2 and 3, none of bouncing balls, and a contact sheet's folder beside them."""
    for step in (1, 2, 3):
        folder = sample_folder(tmp_path / "samples", step)
        folder.mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps({"video_path": "000.mp4", "caption": "a cat"}) + "\n")
    (tmp_path / "samples" / "notes").mkdir()
    return tmp_path / "samples"


def told(scores):
    return list(scores.rest(lambda: False))


def test_what_is_measured_comes_in_order_and_a_failure_is_a_reason(samples, tmp_path, monkeypatch):
    def measured(self, out, *command):
        if "step-000002" in str(out):
            raise MovaError("the disk is full")
        out.mkdir(parents=True)
        (out / "report.json").write_text(json.dumps({"kind": "evaluation", "circumstances": {}, "columns": COLUMNS}))

    monkeypatch.setattr(SampleScores, "_run", measured)
    scores = SampleScores(tmp_path / "scores", samples, SETTINGS)
    for step in (1, 2, 3):
        scores.begin(step)
    first, second, third = told(scores)
    scores.close()
    assert [each.step for each in (first, second, third)] == [1, 2, 3]
    assert first.values.keys() == {"samples/rms", SECONDS} and first.values["samples/rms"] == 0.25
    assert first.words == ("rms 0.25", "lufs none (0 of 2: it has no loudness)")
    assert second.values.keys() == {SECONDS} and second.words == ("not measured: the disk is full",)
    assert third.words == first.words


def test_samples_of_a_run_that_was_ended_are_measured_later(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(SampleScores, "_scores", lambda self, step: ({}, []))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, SECONDS: 3.0}) + '\n{"step": 2}\n')
    scores = SampleScores(tmp_path / "scores", samples, SETTINGS)
    scores.begin_lost(tmp_path / "metrics.jsonl", last=2)
    assert [each.step for each in told(scores)] == [2], "step 1 has its scores, step 3 will be sampled anew"
    scores.close()


def test_closing_ends_the_program_and_nothing_waits_for_it(samples, tmp_path, monkeypatch):
    programs, popen = [], subprocess.Popen

    def sleeping(command, **settings):
        programs.append(popen([sys.executable, "-c", "import time; time.sleep(60)"], **settings))
        time.sleep(0.2)  # the run is closed before the program is known
        return programs[-1]

    monkeypatch.setattr(sample_scores.subprocess, "Popen", sleeping)
    scores = SampleScores(tmp_path / "scores", samples, SETTINGS)
    began = time.monotonic()
    scores.begin(1)
    scores.begin(2)
    while not programs:
        time.sleep(0.01)
    assert list(scores.found()) == [] and list(scores.rest(lambda: True)) == [] and scores.waiting == 2
    scores.close()
    assert time.monotonic() - began < 30 and programs[0].returncode == -15 and len(programs) == 1


def test_what_cannot_be_measured_is_refused_before_training(monkeypatch):
    check_scores(ValidationSettings())
    with pytest.raises(MovaError, match="unknown score 'loudnes'. Did you mean 'loudness'"):
        check_scores(ValidationSettings(every=1, samples=1, synthetic_clips=1, scores=("loudnes",)))
    with pytest.raises(MovaError, match="desync cannot be measured: weights missing"):
        check_scores(ValidationSettings(every=1, samples=1, synthetic_clips=1, scores=("desync",)))
    for settings in ({}, {"every": 1, "synthetic_clips": 1}, {"samples": 1}):
        with pytest.raises(MovaError, match="validation.scores measure samples"):
            ValidationSettings(scores=("loudness",), **settings)


def test_a_program_s_last_line_is_the_reason(samples, tmp_path):
    """The real command, refused before it imports anything heavy."""
    scores = SampleScores(tmp_path / "scores", samples, SETTINGS)
    with pytest.raises(MovaError, match="unknown command 'evall'"):
        scores._run(tmp_path / "scores" / "x", "evall")
    scores.close()


@pytest.mark.long
def test_a_run_has_its_samples_scores_in_its_metrics_and_is_the_same_run(tmp_path):
    settings = (
        "--device cpu --steps 4 --loader.synthetic-clips 4 --loader.batch 2 --loader.num-fit-clips 2 --log.every 1"
    )
    settings += " --validation.every 2 --validation.synthetic-clips 2 --validation.clips 2 --validation.samples 2"
    settings += " --validation.steps 2 --threads 1"
    with_scores = [*settings.split(), "--validation.scores", "loudness", "speech-lag"]
    assert main([*with_scores, "--out", str(tmp_path / "with")]) == 0
    assert main([*settings.split(), "--out", str(tmp_path / "without")]) == 0
    rows, plain = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("with", "without"))
    scored = [row for row in rows if SECONDS in row]
    assert [row["step"] for row in scored] == [2, 4]
    for row in scored:
        assert row["samples/rms"] >= 0 and row["samples/sync_f1"] >= 0 and row[SECONDS] > 0
        assert "samples/speech_lag" not in row, "33 frames are too few for it"
    losses = [[row["loss/video"] for row in each if "loss/video" in row] for each in (rows, plain)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert (tmp_path / "with" / "scores" / "step-000004" / "report.html").is_file()
    assert not (tmp_path / "without" / "scores").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("samples/rms")] == [2, 4]
