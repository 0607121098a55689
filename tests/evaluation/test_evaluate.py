"""`mova eval`: every clip a row, every missing number a reason, the same bytes again, nothing of a user's replaced."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mova_engine.commands.evaluate import main
from mova_engine.data.media.write import write_mp4
from mova_engine.errors import MovaError
from mova_engine.evaluation import evaluation_page, measured_clips
from mova_engine.evaluation.column_summary import bootstrap_interval, summarise
from mova_engine.evaluation.evaluation_run import evaluate
from mova_engine.scores.score_file import chosen_scores
from mova_engine.web.page_text import breakable, number
from mova_engine.web.report_page import histogram

SCORES = ["loudness", "sound-quality", "av-align"]
FPS, RATE = 24, 48000


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips with flashes that click, a silent one and a broken file."""
    folder = tmp_path_factory.mktemp("clips")
    drawn = np.random.default_rng(0)
    for name, times in (("first", (0.5, 1.25)), ("second", (0.75, 1.5))):
        picture = drawn.integers(0, 255, (48, 64, 3), np.uint8)
        pictures = np.repeat(picture[None], 49, 0)
        sound = np.zeros(2 * RATE, np.float32)
        for time in times:
            pictures[round(time * FPS) :] = np.roll(pictures[round(time * FPS) :], 2, 2)
            sound[int(time * RATE) :][:2000] = 0.5 * drawn.standard_normal(2000).clip(-1, 1)
        write_mp4(folder / f"{name}.mp4", pictures, sound, fps=FPS, sample_rate=RATE)
    (folder / "more").mkdir()
    write_mp4(folder / "more" / "silent.mp4", pictures, np.zeros(2 * RATE, np.float32), fps=FPS, sample_rate=RATE)
    (folder / "broken.mp4").write_bytes(b"no clip")
    (folder / "notes.txt").write_text("not a clip")
    return folder


@pytest.fixture(scope="module")
def measured(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "report"
    assert main([str(clips), "--out", str(out), "--workers", "2", "--score", *SCORES]) == 0
    return out


def test_every_clip_is_a_row_and_what_is_missing_is_null_with_a_reason(measured):
    rows = {row["clip"]: row for row in pq.read_table(measured / "scores.parquet").to_pylist()}
    assert list(rows) == ["broken.mp4", "first.mp4", "more/silent.mp4", "second.mp4"]
    broken = rows["broken.mp4"]
    assert broken["rms"] is None and broken["av_align"] is None
    assert broken["why_loudness"] and "broken.mp4" not in broken["why_loudness"]
    silent = rows["more/silent.mp4"]
    assert (silent["rms"], silent["lufs"], silent["digital_silence"]) == (pytest.approx(0, abs=1e-4), None, 1.0)
    assert "LUFS" in silent["why_loudness"] and silent["band_edge"] is None and silent["why_sound-quality"]
    assert rows["first.mp4"]["av_align"] > 0 and rows["first.mp4"]["why_loudness"] is None


def test_the_summary_has_coverage_intervals_and_the_chance_of_foreign_pairs(measured):
    report = json.loads((measured / "report.json").read_text())
    columns = {column["column"]: column for column in report["columns"]}
    assert (columns["rms"]["scored"], columns["rms"]["asked"]) == (3, 4)
    assert (columns["lufs"]["scored"], sum(columns["lufs"]["reasons"].values())) == (2, 2)
    low, high = columns["rms"]["interval"]
    assert low <= columns["rms"]["mean"] <= high
    assert columns["av_align"]["chance"] < columns["av_align"]["mean"]
    assert columns["rms"]["chance"] is None
    assert {"torch", "commit"} & report["circumstances"].keys()


def test_the_page_of_the_folder_that_one_is_in_has_its_name(clips, tmp_path, monkeypatch):
    monkeypatch.chdir(clips)
    main([".", "--out", str(tmp_path / "out"), "--score", "loudness"])
    assert f"<h1>Evaluation of {clips.name}</h1>" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_needs_no_server_and_links_the_clips(measured, clips):
    page = (measured / "report.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "3 of 4" in page and "<svg" in page
    sources = [part.split("'")[0] for part in page.split("src='")[1:]]
    assert sources and all((measured / source).is_file() for source in sources)


def test_what_was_measured_is_not_measured_again(measured, clips, tmp_path, monkeypatch):
    before = (measured / "scores.parquet").read_bytes()
    out = tmp_path / "again"
    shutil.copytree(measured, out)
    # As if the run had been ended before its last clip.
    records = sorted(path for path in (out / "records").rglob("*.json") if "values" in json.loads(path.read_text()))
    records[-1].unlink()
    asked = []
    scored = measured_clips._scored
    monkeypatch.setattr(
        measured_clips, "_scored", lambda path, scores, *more: asked.append(scores) or scored(path, scores, *more)
    )
    evaluate(clips, out, chosen_scores(SCORES)[0], 1, lambda _: None)
    assert [len(scores) for scores in asked] == [1]
    assert (out / "scores.parquet").read_bytes() == before


def test_what_the_machine_lacks_is_an_error_before_the_work_and_no_clip_s_reason(clips, tmp_path, monkeypatch):
    """A kept reason would outlive the package's installation."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find_spec(name)
    )
    with pytest.raises(MovaError, match="DNSMOS needs the package onnxruntime"):
        main([str(clips), "--out", str(tmp_path / "out"), "--score", "loudness", "dnsmos"])
    assert not (tmp_path / "out" / "records").exists()


def test_nothing_of_a_user_s_is_replaced(clips, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(MovaError, match="something else"):
        main([str(clips), "--out", str(mine), "--score", "loudness"])
    (mine / "report.json").write_text("{}")
    with pytest.raises(MovaError, match="not replaced"):
        main([str(clips), "--out", str(mine), "--score", "loudness"])
    assert (mine / "report.json").read_text() == "{}"


def test_a_report_inside_the_folder_of_clips_is_no_clip(clips, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    scores = chosen_scores(["loudness"])[0]
    first = evaluate(folder, folder / "report", scores, 1, lambda _: None)
    shutil.copy(folder / "first.mp4", folder / "report" / "kept.mp4")
    assert len(evaluate(folder, folder / "report", scores, 1, lambda _: None).rows) == len(first.rows)


def test_the_interval_covers_the_mean_of_a_known_distribution():
    """Of 200 sets of 50 draws, about 95 % of the intervals hold the true mean."""
    drawn = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        low, high = bootstrap_interval(drawn.standard_normal(50), seed)
        held += low <= 0 <= high
    assert 0.88 <= held / 200 <= 0.99
    assert bootstrap_interval(np.array([3.0])) is None


def test_a_number_that_no_clip_has_is_none():
    found = summarise("x", [None, None], ["no face", "no face"])
    assert (found.mean, found.interval, found.scored, found.reasons) == (None, None, 0, {"no face": 2})


def test_files_of_the_same_bytes_are_measured_once_and_a_name_breaks_no_line(clips, tmp_path):
    folder, lines = tmp_path / "clips", []
    folder.mkdir()
    for name in ("a.mp4", "b #1? 100%.mp4", "c\nd.mp4"):
        shutil.copy(clips / "first.mp4", folder / name)
    (folder / "e\nf.mp4").write_bytes(b"no clip")
    found = evaluate(folder, tmp_path / "out", chosen_scores(["loudness"])[0], 1, lines.append)
    assert len(found.rows) == 4 and sum(row["rms"] is not None for row in found.rows) == 3
    assert [line.split(",")[0] for line in lines] == ["[1/2] a.mp4", r"[2/2] e\nf.mp4"]


def test_numbers_that_differ_in_the_last_digit_are_drawn():
    third = 1 / 3
    for values, chance in (([third, third], np.nextafter(third, 1)), ([0.0, 5e-324], None), ([1.0, 1.0], None)):
        assert histogram(np.array(values), [] if chance is None else [chance]).count("<rect") >= 1


def test_a_name_s_signs_do_not_break_its_link():
    player = evaluation_page._player(1.0, "b #1? 100%.mp4", Path("clips"), Path("clips"))
    assert "src='b%20%231%3F%20100%25.mp4'" in player


def test_a_name_that_is_no_text_is_refused_before_work(clips, tmp_path):
    shutil.copy(clips / "first.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    with pytest.raises(MovaError, match="not UTF-8"):
        evaluate(tmp_path, tmp_path / "out", chosen_scores(["loudness"])[0], 1, lambda _: None)
    assert not (tmp_path / "out").exists()


def test_nothing_is_kept_of_a_file_that_changes_while_it_is_measured(clips, tmp_path, monkeypatch):
    folder, scores = tmp_path / "clips", chosen_scores(["loudness"])[0]
    shutil.copytree(clips, folder)
    read_clip = measured_clips.read_clip

    def changed(path):
        if path.name == "first.mp4":
            shutil.copy(clips / "second.mp4", path)
        return read_clip(path)

    monkeypatch.setattr(measured_clips, "read_clip", changed)
    with pytest.raises(MovaError, match=r"first\.mp4: changed"):
        evaluate(folder, tmp_path / "out", scores, 1, lambda _: None)
    monkeypatch.undo()
    found = evaluate(folder, tmp_path / "out", scores, 1, lambda _: None)
    rms = {row["clip"]: row["rms"] for row in found.rows}
    assert rms["first.mp4"] == rms["second.mp4"]


def test_numbers_of_a_page_have_four_digits_and_no_needless_exponent():
    told = [number(each) for each in (None, 0.0, 0.000123456, 8.04166, 1234.56, 11062.5, -48000.0, 2.5e12)]
    assert told == ["", "0", "0.0001235", "8.042", "1235", "11062", "-48000", "2.5e+12"]
    assert breakable("share_of <text>") == "share_<wbr>of &lt;text&gt;"
