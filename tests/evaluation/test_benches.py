"""A bench's numbers: by its rule, of the clips that it asks for, with what is missing told; published rows apart."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn_scores import PEAK
from scipy.io import wavfile

from mova_engine.errors import MovaError
from mova_engine.evaluation.benches.bench_formats import read_bench
from mova_engine.evaluation.benches.bench_items import AskedNumber, Bench, BenchItem
from mova_engine.evaluation.benches.bench_page import bench_section
from mova_engine.evaluation.benches.bench_run import BenchResult, BenchRun
from mova_engine.evaluation.benches.bench_summary import number_of_rows
from mova_engine.evaluation.benches.bench_words import told_bench
from mova_engine.evaluation.benches.clip_matching import match_files
from mova_engine.evaluation.benches.known_benches import NUMBERS
from mova_engine.evaluation.evaluation_run import evaluate
from mova_engine.evaluation.published_rows import published_tables
from mova_engine.files.digests import Digests
from mova_engine.scores.score_table import SCORES
from source_tree import ROOT

DATA = ROOT / "tests" / "data" / "benches"
RATE = 16000


def sound(path: Path, percent: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, RATE, np.full(RATE // 10, percent * 32767 // 100 + 1, np.int16) * (percent > 0))


def numbers_of(items, files, rows, asked):
    bench = Bench("own", Path("x"), tuple(items), (asked,))
    return number_of_rows(bench, asked, match_files(map(Path, files), items), {row["clip"]: row for row in rows})


ITEMS = [BenchItem("1", "a"), BenchItem("2", "a"), BenchItem("3", "a"), BenchItem("4", "b"), BenchItem("5", "c")]


def row(name, value, reason=None, characters=10):
    return {"clip": name, "x": value, "n": None if value is None else characters, "why_s": reason}


def test_a_mean_of_categories_is_no_mean_over_clips():
    rows = [row("1.wav", 1.0), row("2.wav", 2.0), row("3.wav", 3.0), row("4.wav", 10.0)]
    names = [each["clip"] for each in rows]
    by_category = numbers_of(ITEMS[:4], names, rows, AskedNumber("x", "s", "x", "categories"))
    by_clip = numbers_of(ITEMS[:4], names, rows, AskedNumber("x", "s", "x", "clips"))
    assert (by_category.total.mean, by_clip.total.mean) == (6.0, 4.0)
    assert {name: part.mean for name, part in by_category.categories.items()} == {"a": 2.0, "b": 10.0}
    assert by_category.total.interval is None, "one clip of b does not vary"
    assert by_clip.total.interval is not None


def test_coverage_counts_what_is_asked_for_and_a_category_without_a_number_leaves_no_mean():
    rows = [row("1.wav", 1.0), row("2.wav", None, "no face"), row("4.wav", 5.0)]
    found = numbers_of(ITEMS, [each["clip"] for each in rows], rows, AskedNumber("x", "s", "x", "categories"))
    assert (found.total.scored, found.total.asked, found.total.mean) == (2, 5, None)
    assert found.total.reasons == {"no face": 1, "no file of this id": 2}
    assert (found.categories["a"].mean, found.categories["c"].mean) == (1.0, None)
    of_two = numbers_of(ITEMS, ["1.wav", "2.wav", "4.wav"], rows, AskedNumber("x", "s", "x", "categories", ("a", "b")))
    assert (of_two.total.mean, of_two.total.asked) == (3.0, 4)


def test_several_files_of_a_prompt_are_one_clip_and_the_interval_is_over_clips():
    rows = [row(f"1_seed{i}.wav", float(i)) for i in range(4)] + [row("2_seed0.wav", 7.5)]
    found = numbers_of(ITEMS[:2], [each["clip"] for each in rows], rows, AskedNumber("x", "s", "x"))
    assert (found.total.scored, found.total.mean, found.total.interval) == (2, 4.5, (1.5, 7.5))


def test_a_ratio_divides_sums():
    rows = [row("1.wav", 1.0, characters=10), row("2.wav", 9.0, characters=90), row("3.wav", None, "not heard")]
    found = numbers_of(ITEMS[:3], [each["clip"] for each in rows], rows, AskedNumber("CER", "s", "x", per="n"))
    assert found.total.mean == pytest.approx(10 / 100) and found.total.scored == 2
    assert found.total.interval == pytest.approx((0.1, 0.1))
    rows[1]["x"] = 0.0
    found = numbers_of(ITEMS[:3], [each["clip"] for each in rows], rows, AskedNumber("CER", "s", "x", per="n"))
    assert found.total.mean == pytest.approx(1 / 100), "no mean of the clips' own ratios, which were 0.05"


@pytest.fixture(scope="module")
def verse(tmp_path_factory):
    """The tiny Verse-Bench, one of its clips missing, one sampled twice, one silent; and what an evaluation finds."""
    folder = tmp_path_factory.mktemp("verse")
    clips, out = folder / "clips", folder / "report"
    for name, percent in (
        ("set1/00000000_a.wav", 10),
        ("set1/00000002_b.wav", 20),
        ("set2/00000300_seed0.wav", 30),
        ("set2/00000300_seed1.wav", 50),
        ("set3/00001000.wav", 60),
        ("set3/00001001.wav", 0),
        ("set3/stray.wav", 90),
    ):
        sound(clips / name, percent)
    bench = read_bench("verse", DATA / "verse")
    asked = (
        AskedNumber("Peak", "peak", "peak", "categories"),
        AskedNumber("Speech", "peak", "peak", "clips", ("set3",)),
        AskedNumber("Largest", "peak", "largest", "categories"),
        AskedNumber("KL", "peak", "pair_difference"),
        AskedNumber("DeSync", "desync", "desync", "categories"),
    )
    bench = replace(bench, numbers=asked)
    skipped = {"desync": "weights missing: synchformer_state_dict.pth"}
    return evaluate(clips, out, [PEAK], 2, lambda _: None, skipped=skipped, bench=bench), out


def test_an_evaluation_of_a_bench_has_its_numbers(verse):
    result, out = verse
    found = {number.asked.name: number for number in result.bench.numbers}
    assert found["Peak"].total.mean == pytest.approx((15 + 40 + 60) / 3)
    assert (found["Peak"].total.scored, found["Peak"].total.asked) == (4, 6)
    assert found["Peak"].total.reasons == {"no file of this id": 1, "silent": 1}
    assert found["Speech"].total.mean == 60 and found["Speech"].total.asked == 2
    assert found["Largest"].total.mean == pytest.approx((20 + 50 + 60) / 3)
    assert found["KL"].total.mean is None and "recordings" in next(iter(found["KL"].total.reasons))
    assert found["DeSync"].total.reasons == {"weights missing: synchformer_state_dict.pth": 6}
    assert [number.asked.name for number in result.bench.numbers[5:]] == ["peak_pairs", "set_difference"]
    rows = pq.read_table(out / "scores.parquet").to_pylist()
    assert {(x["id"], x["category"]) for x in rows} == {
        ("00000000", "set1"),
        ("00000002", "set1"),
        ("00000300", "set2"),
        ("00001000", "set3"),
        ("00001001", "set3"),
    }
    assert not any("stray" in x["clip"] for x in rows)
    facts = json.loads((out / "report.json").read_text())["bench"]
    assert facts["missing"] == [{"id": "clip_0a1b2c3d", "category": "set2"}] and facts["extra"] == ["set3/stray.wav"]
    assert facts["numbers"][0]["total"]["asked"] == 6


def test_the_page_shows_published_rows_apart_and_says_what_cannot_be_compared(verse):
    result, out = verse
    page = (out / "report.html").read_text()
    own, published = page.split("<section class=published>", 1)
    assert "0.220" in published and "LTX-2" in published and "LTX-2" not in own
    assert "not the published bench: set1 2 of 205" in published
    assert "set2/clip_0a1b2c3d" in own and "set3/stray.wav" in own
    lines = "\n".join(told_bench(result.bench))
    assert "5 of 6 clips have a file" in lines and "weights missing" in lines


def test_a_bench_with_recordings_compares_each_clip_with_its_own(tmp_path):
    for name, percent in (("11.wav", 30), ("12.wav", 50), ("21.wav", 70), ("31.wav", 90)):
        sound(tmp_path / "clips" / name, percent)
    bench = read_bench("audio", DATA / "audio")
    numbers = (AskedNumber("KL", "peak", "pair_difference"), AskedNumber("FD", "peak", "set_difference"))
    result = evaluate(
        tmp_path / "clips", tmp_path / "out", [PEAK], 1, lambda _: None, bench=replace(bench, numbers=numbers)
    )
    pairs, sets = result.bench.numbers[:2]
    peak = 24  # per cent of the recordings
    assert pairs.total.mean == pytest.approx(50 - peak, abs=1) and pairs.total.scored == 3
    assert pairs.total.reasons == {"no recording to compare it with": 1}
    assert sets.total.mean == pytest.approx(60 - peak, abs=1) and sets.total.scored == 4
    assert "against 2 recordings" in sets.notes[0] and "few clips" in sets.notes[0]


def test_a_folder_s_bench_asks_for_every_number(tmp_path):
    for name in ("ball_1.wav", "talk.wav"):
        sound(tmp_path / "clips" / name, 40)
    bench = read_bench(str(DATA / "folder"), None)
    result = evaluate(tmp_path / "clips", tmp_path / "out", [PEAK], 1, lambda _: None, bench=bench)
    names = [number.asked.name for number in result.bench.numbers]
    assert names == ["peak", "peak_pairs", "largest", "pair_difference", "set_difference"]
    assert result.bench.numbers[3].total.scored == 1
    assert "published" not in bench_section(result.bench)


def test_a_score_is_measured_only_of_the_categories_that_are_asked_for_it(tmp_path):
    sound(tmp_path / "set1" / "00000000.wav", 10)
    sound(tmp_path / "set3" / "00001000.wav", 20)
    bench = read_bench("verse", DATA / "verse")
    bench = replace(bench, numbers=(AskedNumber("Speech", "peak", "peak", "clips", ("set3",)),))
    rows = evaluate(tmp_path, tmp_path / "out", [PEAK], 1, lambda _: None, bench=bench).rows
    assert [(x["peak"], x["why_peak"]) for x in rows] == [(None, "not asked of set1"), (20, None)]
    # Whatever was measured before, or of a file of the same bytes in a category that is asked.
    sound(tmp_path / "set1" / "00000002.wav", 20)
    evaluate(tmp_path, tmp_path / "before", [PEAK], 1, lambda _: None)
    rows = evaluate(tmp_path, tmp_path / "before", [PEAK], 1, lambda _: None, bench=bench).rows
    assert [x["peak"] for x in rows] == [None, None, 20]


def test_a_recording_elsewhere_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    sound(tmp_path / "clips" / "1.wav", 10)
    sound(tmp_path / "elsewhere" / "real.wav", 20)
    whole = Digests.of

    def refused(self, path):
        if path.name == "real.wav":
            raise MovaError(f"{path}: cannot be read (Permission denied)")
        return whole(self, path)

    monkeypatch.setattr(Digests, "of", refused)
    real = tmp_path / "elsewhere" / "real.wav"
    bench, lines = Bench("own", tmp_path / "bench" / "list", (BenchItem("1", "a", reference=real),)), []
    evaluate(tmp_path / "clips", tmp_path / "out", [PEAK], 1, lines.append, bench=bench)
    assert any(line.endswith(": cannot be read (Permission denied)") for line in lines)


def test_files_of_one_prompt_are_no_pair_for_chance(tmp_path):
    for name, percent in (("1_seed0", 10), ("1_seed1", 20), ("2_seed0", 50)):
        sound(tmp_path / f"{name}.wav", percent)
    bench = Bench("own", tmp_path / "list", (BenchItem("1", "a"), BenchItem("2", "a")))
    paired = replace(PEAK, chance="drawn_scores:peak_of_pair")
    found = evaluate(tmp_path, tmp_path / "out", [paired], 1, lambda _: None, bench=bench)
    assert found.summaries[0].chance == 35, "of 10 and 50, and of 20 and 50"


def test_a_folder_of_other_clips_is_refused(tmp_path):
    sound(tmp_path / "a.wav", 10)
    with pytest.raises(MovaError, match="no file in it begins with an id of"):
        BenchRun(read_bench("verse", DATA / "verse"), tmp_path, tmp_path / "out")


def test_known_benches_ask_for_numbers_that_scores_declare():
    for bench, numbers in NUMBERS.items():
        for asked in numbers:
            score = SCORES[asked.score]
            names = {column.name for column in score.columns} | {number.name for number in score.set_numbers}
            assert {asked.column, asked.per} - {""} <= names, (bench, asked.name)


def test_published_rows_say_where_they_come_from_and_stay_as_printed():
    tables = [table for bench in NUMBERS for table in published_tables(bench)]
    assert len(tables) == 4 and published_tables("folder") == []
    for table in tables:
        assert table.source.startswith("github.com/") and table.convention and table.unknown and table.rows
        for each in table.rows:
            assert each.values and all(float(value) > 0 for value in each.values.values())
    (verse,) = published_tables("verse")
    by_model = {row.model: row.values for row in verse.rows}
    assert by_model["LTX-2"]["cpCER"] == "0.220" and "DNSMOS" not in by_model["WAN2.1 + MMAudio"]


def test_conventions_that_differ_are_told(verse):
    (table,) = published_tables("verse")
    result, _ = verse
    measured = [
        replace(x, asked=replace(x.asked, name="DNSMOS"), convention="corrected") for x in result.bench.numbers[:1]
    ]
    assert table.differences(measured) == ["DNSMOS (yours: corrected, theirs: mova)"]
    assert table.differences([replace(measured[0], convention="mova")]) == []
    section = bench_section(BenchResult(result.bench.bench, result.bench.found, measured))
    assert "Not comparable with yours, which follow another convention: DNSMOS" in section
