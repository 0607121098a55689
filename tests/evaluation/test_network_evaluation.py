"""`mova eval` with networks: what a user's weights allow is measured, by which weights and convention is told."""

import hashlib
import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mova_engine import scores
from mova_engine.commands import eval_weights
from mova_engine.commands.evaluate import main
from mova_engine.data.media.reader_process import FatalFileError
from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.evaluation import measured_clips, set_summary
from mova_engine.evaluation.comparison_of_sets import compare
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.decoded_clip import Measured
from mova_engine.scores.networks.official_files import load_official
from mova_engine.scores.score_declaration import Score, ScoreColumn, SetNumber
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.score_table import COLUMNS, SCORES
from mova_engine.scores.weights_folder import WeightsFolder
from mova_engine.scores.weights_manifest import WEIGHTS, WeightsFile

HERE = f"{__name__}"
CALLS = []


def open_tiny(path):
    return load_official(lambda: nn.Linear(1, 1, bias=False), path)


def gain(clip, network, convention):
    """The sound's level through the network; "mova" doubles it."""
    CALLS.append((clip.path.name, os.getpid()))
    level = float(np.abs(clip.sound(16000)).mean()) * (2 if convention == "mova" else 1)
    value = float(network(torch.tensor([level])))
    return Measured({"gain": value}, {"row": np.array([value, 1.0], np.float32), "said": [convention]})


def gain_of_pair(sound, pictures, network, convention):
    return {"gain": float(sound["row"][0] - pictures["row"][0])}


def captioned(clip, network, convention, *, prompt):
    return {"letters": float(len(prompt))}


def broken_features(clip):
    return Measured({}, {"rows": [np.array([1.0, np.nan], np.float32)]})


def kept_caption(clip, network, convention, *, prompt):
    return Measured({"letters": 0.0}, len(prompt))


def letters_of_pair(sound, pictures):
    return {"letters": float(abs(sound - pictures))}


def mean_gain(evidence, convention):
    assert {each["said"][0] for each in evidence} == {convention}
    return float(np.mean([each["row"][0] for each in evidence]))


def distance(evidence, reference, convention):
    if len(reference) < 2:
        raise MovaError("two clips at least are compared")
    return abs(mean_gain(evidence, convention) - mean_gain(reference, convention)), "few clips"


def difference(evidence, reference, convention):
    return float(np.mean([a["row"][0] - b["row"][0] for a, b in zip(evidence, reference, strict=True)]))


GAIN = Score(
    "gain",
    f"{HERE}:gain",
    (ScoreColumn("gain", "", "level after the network", better="up"),),
    conventions=("corrected", "mova"),
    chance=f"{HERE}:gain_of_pair",
    chance_network=True,
    weights=("tiny",),
    set_numbers=(
        SetNumber("mean_gain", "", "mean", f"{HERE}:mean_gain", resamples=50),
        SetNumber("gain_distance", "", "distance", f"{HERE}:distance", "down", "set"),
        SetNumber("gain_difference", "", "difference", f"{HERE}:difference", "", "pairs"),
    ),
)
CAPTIONED = Score(
    "letters", f"{HERE}:captioned", (ScoreColumn("letters", "", "of the caption"),), weights=("tiny",), prompt=True
)


@pytest.fixture
def declared(monkeypatch):
    """Two scores by a network of one weight, beside loudness; the weights' licence is not commercial."""
    for name in SCORES.keys() - {"loudness"}:
        monkeypatch.delitem(SCORES, name)
    for score in (GAIN, CAPTIONED):
        monkeypatch.setitem(SCORES, score.name, score)
        for column in score.columns:
            monkeypatch.setitem(COLUMNS, column.name, column)
    for name in list(WEIGHTS):
        monkeypatch.delitem(WEIGHTS, name)
    entry = WeightsFile("tiny", ("tiny.safetensors",), f"{HERE}:open_tiny", "a weight", "for tests", False, "here")
    monkeypatch.setitem(WEIGHTS, "tiny", entry)
    CALLS.clear()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    pictures = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), np.uint8)
    for name, level in (("a", 0.1), ("b", 0.3)):
        sound = level * np.sin(np.arange(12000) / 10).astype(np.float32)
        write_mp4(folder / f"{name}.mp4", pictures, sound, fps=24, sample_rate=48000)
    return folder


def weights_in(folder: Path, value: float) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"weight": torch.full((1, 1), value)}, folder / "tiny.safetensors")
    return folder


def run(clips, out, *words):
    assert main([str(clips), "--out", str(out), "--workers", "1", *map(str, words)]) == 0
    return json.loads((out / "report.json").read_text())


def column(report, name):
    return next(each for each in report["columns"] if each["column"] == name)


def test_without_weights_the_rest_is_measured_and_a_named_score_is_an_error_before_the_work(
    declared, clips, tmp_path, capsys
):
    report = run(clips, tmp_path / "out")
    assert report["not_measured"].keys() == {"gain", "letters"} and column(report, "rms")["scored"] == 2
    assert "not measured without --weights: gain, letters" in capsys.readouterr().out
    assert "weights missing: tiny.safetensors" in (tmp_path / "out" / "report.html").read_text()
    weights = weights_in(tmp_path / "weights", 2.0)
    for words, told in (
        ([], "gain cannot be measured: weights missing: tiny.safetensors"),
        (["--weights", str(tmp_path)], "weights missing: tiny.safetensors"),
        (["--weights", str(weights)], r"for tests\) need --accept-noncommercial"),
    ):
        with pytest.raises(MovaError, match=told):
            main([str(clips), "--out", str(tmp_path / "none"), "--score", "gain", *words])
    assert not CALLS and not (tmp_path / "none").exists()


def test_numbers_of_clips_and_of_the_set_stand_beside_chance_and_reference(declared, clips, tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(measured_clips, "read_clip", lambda path: decoded.append(path.name) or read_clip(path))
    weights = weights_in(tmp_path / "weights", 2.0)
    words = ["--weights", weights, "--accept-noncommercial"]
    report = run(clips, tmp_path / "out", *words, "--reference", clips)
    sets = {each["name"]: each for each in report["sets"]}
    gain = column(report, "gain")
    assert gain["mean"] == pytest.approx(sets["mean_gain"]["value"])
    # Both orders of the only pair.
    assert gain["chance"] == pytest.approx(0, abs=1e-6)
    low, high = sets["mean_gain"]["interval"]
    assert low <= gain["mean"] <= high and sets["mean_gain"]["clips"] == 2
    assert (sets["gain_distance"]["value"], sets["gain_distance"]["note"]) == (0, "few clips")
    assert sets["gain_difference"]["value"] == 0 and sets["gain_difference"]["reference"] == 2
    stated = report["scores"]["gain"]["weights"]["tiny"]
    assert len(stated["sha256"]) == 64 and stated["published"] is None and stated["licence"] == "for tests"
    assert report["seconds"]["decode"]["clips"] == 2 and report["seconds"]["gain"]["total"] > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(told in page for told in ("mean_<wbr>gain", "Seconds by score", stated["sha256"][:12], "few clips"))
    assert sorted(decoded) == ["a.mp4", "b.mp4"]
    # The networks ran in this process: none of the limits of the one that decodes is theirs.
    assert {process for _, process in CALLS} == {os.getpid()}
    # Without a reference, numbers that need one say so.
    again = {each["name"]: each for each in run(clips, tmp_path / "out", *words)["sets"]}
    assert again["gain_distance"]["value"] is None and "--reference" in again["gain_distance"]["reason"]
    assert len(CALLS) == 2


def test_pairs_are_of_the_same_name_and_a_reason_stands_where_a_set_has_no_number(declared, clips, tmp_path):
    reference = tmp_path / "real"
    reference.mkdir()
    shutil.copy(clips / "b.mp4", reference / "a.mkv")
    words = ["--weights", weights_in(tmp_path / "weights", 1.0), "--accept-noncommercial", "--reference", reference]
    sets = {each["name"]: each for each in run(clips, tmp_path / "out", *words, "--score", "gain")["sets"]}
    assert (sets["gain_difference"]["clips"], sets["gain_difference"]["asked"]) == (1, 2)
    assert sets["gain_difference"]["value"] < 0
    assert sets["gain_distance"]["value"] is None and sets["gain_distance"]["reason"].startswith("two clips")
    # Two that differ by their suffix alone: neither is taken for the other.
    shutil.copy(clips / "a.mp4", reference / "a.mov")
    sets = {each["name"]: each for each in run(clips, tmp_path / "two", *words)["sets"]}
    assert sets["gain_difference"]["reason"] == "several clips of the reference have the name of a.mp4: a.mkv, a.mov"
    shutil.copy(clips / "a.mp4", reference / "a.mp4")
    sets = {each["name"]: each for each in run(clips, tmp_path / "three", *words)["sets"]}
    assert sets["gain_difference"]["value"] == 0


def test_other_weights_or_another_convention_measure_anew_and_are_not_compared(declared, clips, tmp_path):
    two, three = weights_in(tmp_path / "two", 2.0), weights_in(tmp_path / "three", 3.0)
    words = ["--accept-noncommercial", "--score", "gain"]
    first = column(run(clips, tmp_path / "out", "--weights", two, *words), "gain")["mean"]
    shutil.copytree(tmp_path / "out", tmp_path / "first")
    assert column(run(clips, tmp_path / "out", "--weights", three, *words), "gain")["mean"] == pytest.approx(
        1.5 * first
    )
    assert len(CALLS) == 4
    with pytest.raises(MovaError, match=r"gain cannot be compared: weights tiny [0-9a-f]{12}\.\.\. in"):
        compare(tmp_path / "first", tmp_path / "out")
    published = run(clips, tmp_path / "out", "--weights", two, *words, "--convention", "mova")
    assert column(published, "gain")["mean"] == pytest.approx(2 * first)
    assert published["scores"]["gain"]["convention"] == "mova" and len(CALLS) == 6
    with pytest.raises(MovaError, match="convention corrected in"):
        compare(tmp_path / "first", tmp_path / "out")
    # A convention that a score does not know is its first.
    other = run(clips, tmp_path / "out", "--weights", two, *words, "--convention", "av-benchmark")
    assert other["scores"]["gain"]["convention"] == "corrected" and len(CALLS) == 6


def test_a_caption_is_part_of_what_was_measured(declared, clips, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    words = ["--weights", weights_in(tmp_path / "weights", 2.0), "--accept-noncommercial"]
    report = run(folder, tmp_path / "out", *words)
    assert "caption" in report["not_measured"]["letters"]
    with pytest.raises(MovaError, match="letters cannot be measured: no clip has a caption"):
        run(folder, tmp_path / "out", *words, "--score", "letters")
    (folder / "a.txt").write_text("four\n")
    letters = column(run(folder, tmp_path / "out", *words), "letters")
    assert (letters["mean"], letters["scored"]) == (4, 1) and "no caption" in next(iter(letters["reasons"]))
    rows = [json.dumps({"video_path": f"{name}.mp4", "caption": name * 7}) for name in "ab"]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    letters = column(run(folder, tmp_path / "out", *words), "letters")
    assert (letters["mean"], letters["scored"]) == (7, 2)


@pytest.mark.parametrize("failing", ["the reader", "memory"])
def test_a_reason_of_this_run_is_told_and_not_kept(declared, clips, tmp_path, monkeypatch, failing):
    """Time and memory that were short today are no property of a clip."""
    with monkeypatch.context() as patched:
        if failing == "the reader":

            def killed(path):
                raise FatalFileError(path, "reading it takes more than 300 s of processor time")

            patched.setattr(measured_clips, "read_clip", killed)
        else:
            patched.setattr(f"{HERE}.gain", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        words = ["--weights", weights_in(tmp_path / "weights", 2.0), "--accept-noncommercial", "--score", "gain"]
        found = column(run(clips, tmp_path / "out", *words), "gain")
        assert found["scored"] == 0 and ("300 s" if failing == "the reader" else "no room") in str(found["reasons"])
    assert column(run(clips, tmp_path / "out", *words), "gain")["scored"] == 2


def test_what_a_folder_of_weights_holds(declared, clips, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "weights"
    folder.mkdir()

    def told(status=0):
        assert eval_weights.main([str(folder), "--accept-noncommercial"]) == status
        return capsys.readouterr().out

    assert told().startswith("missing       tiny.safetensors") and "weights missing" in told()
    weights_in(folder, 2.0)
    out = told()
    assert out.startswith("found         tiny.safetensors sha256 ") and "hash not on record" in out
    assert "gain            can be measured (weights)" in out and "commercial use not allowed" in out
    entry = WEIGHTS["tiny"]
    monkeypatch.setitem(WEIGHTS, "tiny", WeightsFile(*(getattr(entry, n) for n in _FIELDS), sha256=("0" * 64,)))
    assert told().startswith("wrong hash    tiny.safetensors") and "can be measured" in told()
    save_file({"weight": torch.zeros(1, 2)}, folder / "tiny.safetensors")
    out = told(status=2)
    assert out.startswith("wrong content tiny.safetensors") and "gain            wrong content" in out
    with pytest.raises(MovaError, match="does not hold this network's weights"):
        run(clips, tmp_path / "out", "--weights", folder, "--accept-noncommercial", "--score", "gain")


_FIELDS = ("name", "files", "open", "about", "licence", "commercial", "source")


def test_every_declared_score_names_weights_that_the_manifest_has():
    named = {name for score in SCORES.values() for name in score.weights}
    assert named == WEIGHTS.keys()
    assert all(entry.licence and entry.source and entry.files for entry in WEIGHTS.values())


def test_programs_get_a_score_by_its_name_or_their_own_declaration(declared, clips, tmp_path):
    clip = clips / "a.mp4"
    loudness = scores.get("loudness")
    assert loudness(clip) == loudness(read_clip(clip)) and loudness(clip)["rms"] == pytest.approx(0.07, abs=0.01)
    with pytest.raises(MovaError, match=r"unknown score 'loudnes'\. Did you mean 'loudness'"):
        scores.get("loudnes")
    with pytest.raises(MovaError, match="gain cannot be measured: weights missing"):
        scores.get("gain")
    weights = weights_in(tmp_path / "weights", 2.0)
    gain = scores.get("gain", weights=weights, accept_noncommercial=True, convention="mova")(clip)["gain"]
    assert gain == pytest.approx(2 * scores.get("gain", weights=weights, accept_noncommercial=True)(clip)["gain"])
    own = Score("letters of mine", f"{HERE}:captioned", CAPTIONED.columns, weights=("tiny",), prompt=True)
    measure = scores.get(own, weights=weights, accept_noncommercial=True)
    assert measure(clip, prompt="four") == {"letters": 4}
    with pytest.raises(MovaError, match=r"a\.mp4: letters of mine: the clip has no caption"):
        measure(clip)


def test_an_interrupted_run_ends_after_the_score_that_it_is_at(declared, clips, tmp_path, monkeypatch):
    """Two clips at a time: the first is interrupted, the second has two scores before it and computes one."""
    begun, interrupted = threading.Event(), threading.Event()

    def scored(path, wanted, runner, caption):
        if path.name == "a.mp4":
            begun.wait(20)
            raise KeyboardInterrupt
        return measured(path, wanted, runner, caption)

    def waits(*_):
        begun.set()
        interrupted.wait(20)
        CALLS.append("gain")
        return {"gain": 1.0}

    measured = measured_clips._scored
    monkeypatch.setattr(measured_clips, "_scored", scored)
    monkeypatch.setattr(f"{HERE}.gain", waits)
    monkeypatch.setattr(f"{HERE}.captioned", lambda *_, prompt: CALLS.append("letters") or {"letters": 1.0})
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "b.txt").write_text("four")
    words = ["--weights", weights_in(tmp_path / "weights", 2.0), "--accept-noncommercial", "--score", "gain", "letters"]
    with pytest.raises(KeyboardInterrupt):
        main([str(folder), "--out", str(tmp_path / "out"), "--workers", "2", *map(str, words)])
    before = set(threading.enumerate())
    interrupted.set()
    for thread in before - {threading.current_thread()}:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(20)
    assert CALLS == ["gain"]


def test_pairs_for_chance_are_of_different_clips_and_each_comes_once():
    few = set_summary._pairs(["a", "b", "a"])
    assert few == [(0, 1), (1, 0), (1, 2), (2, 1)]
    assert set_summary._pairs(["a", "a"]) == []
    # Nearly all the same: there are fewer pairs than would be drawn.
    assert len(set_summary._pairs(["a"] * 30 + ["b"])) == 60
    many = set_summary._pairs([str(i % 150) for i in range(300)])
    assert len(set(many)) == len(many) == 200 and all(i % 150 != j % 150 for i, j in many)


def test_evidence_that_is_no_number_is_the_reason_of_its_clip_and_spoils_no_set(clips):
    kept = Score("kept", f"{HERE}:broken_features", ())
    found = ScoreRunner().measure(read_clip(clips / "a.mp4"), [kept])
    assert not found.evidence and "NaN or infinite" in found.reasons["kept"]


def test_a_configuration_beside_weights_is_part_of_what_numbers_depend_on(tmp_path):
    folder = tmp_path / "audiobox-aesthetics"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    digests = []
    for config in ("{}", "[]"):
        (folder / "config.json").write_text(config)
        digests.append(WeightsFolder(tmp_path).digest("audiobox"))
    assert digests[0] != digests[1]
    own = replace(WEIGHTS["audiobox"], sha256=(hashlib.sha256(b"weights").hexdigest(),))
    assert [own.published(digest) for digest in digests] == [True, True]
    assert WEIGHTS["audiobox"].published(digests[0]) is False and WEIGHTS["clap"].published(digests[0]) is None


def test_clips_of_one_caption_are_no_pair_for_the_chance_of_sound_and_text(declared, clips, tmp_path):
    assert set_summary._pairs(["a", "b", "c"], ["x", "x", "y"]) == [(0, 2), (1, 2), (2, 0), (2, 1)]
    assert set_summary._pairs(["a", "b"], ["x", "x"]) == []
    many = set_summary._pairs([str(i) for i in range(300)], [str(i // 2) for i in range(300)])
    assert len(many) == 200 and all(i // 2 != j // 2 for i, j in many)
    letters = replace(CAPTIONED, target=f"{HERE}:kept_caption", chance=f"{HERE}:letters_of_pair")
    SCORES["letters"] = letters
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    shutil.copy(clips / "a.mp4", folder / "c.mp4")
    with open(folder / "c.mp4", "ab") as file:
        file.write(bytes(8))
    for name, caption in (("a", "same"), ("b", "same"), ("c", "another")):
        (folder / f"{name}.txt").write_text(caption)
    words = ["--weights", weights_in(tmp_path / "weights", 2.0), "--accept-noncommercial", "--score", "letters"]
    # Foreign pairs differ by 3 letters; the pairs of a and b, which share their caption, would by none.
    assert column(run(folder, tmp_path / "out", *words), "letters")["chance"] == 3
