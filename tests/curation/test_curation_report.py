"""A curation's page, the order of filters that it derives, and the explanation of a clip."""

import itertools
import re
from pathlib import Path

import pytest

from mova_engine.commands import curate_explain, curate_report
from mova_engine.errors import MovaError

pa = pytest.importorskip("pyarrow")

from synthetic_clips import FILTERS, write_run  # noqa: E402

from mova_engine.curation.clip_file import ClipFile  # noqa: E402
from mova_engine.curation.filter_order import OrderCounter, clip_seconds  # noqa: E402
from mova_engine.curation.judging import read_order  # noqa: E402
from mova_engine.curation.stage_seconds import StepSeconds, seconds_by_step  # noqa: E402
from mova_engine.curation.timings import Timings  # noqa: E402
from mova_engine.curation.unit_run import UnitReport  # noqa: E402
from mova_engine.curation.verdicts import Judge  # noqa: E402

FILM = Path(__file__).parents[1] / "data" / "media" / "talking_real_speech.mp4"
SECONDS = {"cut": 8.0, "decode": 30.0, "desync": 180.0, "imagebind": 100.0, "lip-sync": 240.0}
RAN = {"cut": 100, "decode": 90, "desync": 90, "imagebind": 50, "lip-sync": 60}


@pytest.fixture
def run(tmp_path):
    """A run's folder with timings of two units, whose clips are of a real film."""
    out = tmp_path / "run"
    write_run(out, 400, path=FILM)
    timings = Timings(out / "timings")
    for unit in ("a", "b"):
        timings.add(unit, UnitReport(100, 40, 600.0, seconds=SECONDS, measured=RAN))
    timings.write()
    return out


def test_seconds_are_added_up_by_step(run):
    found = seconds_by_step(run)
    assert list(found) == ["lip-sync", "desync", "imagebind", "decode", "cut"], "the dearest first"
    assert found["desync"] == StepSeconds("desync", 360.0, 180) and found["desync"].per_clip == 2.0
    assert found["cut"].film == 1200.0
    assert seconds_by_step(run, "a")["cut"].clips == 100
    (run / "config.yaml").write_text("device: cuda\n")
    devices = {name: each.device for name, each in seconds_by_step(run).items()}
    assert devices["desync"] == "cuda" and devices["cut"] == devices["decode"] == "cpu"


def test_the_page_needs_no_server_and_shows_what_is_dropped(run, capsys):
    assert curate_report.main([str(run), "--sheets", "1"]) == 0
    said = capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "src='http" not in page and "href" not in page and "<script" not in page
    assert page.count("data:image/webp;base64,") == len(FILTERS), "a sheet of each filter that drops something"
    for name, text in FILTERS.items():
        assert f"<h3>{name} <code>" in page and text.split("'")[0].replace("<", "&lt;").replace(">", "&gt;") in page
    # Of 400 clips in 1.1 hours, cut at 0.08 s each: hours of film in a day of a core.
    hours, taken = 4000 / 3600, 400 * 0.08
    assert f"{hours / (taken / 86400):.4g}" in page
    assert "the clip is too short for it" in page and page.count("<svg") > 10
    order = read_order(run / "order.txt")
    assert sorted(order) == sorted(FILTERS) and f"order that measures least: {', '.join(order)}" in said


def test_a_film_that_is_gone_is_told_and_takes_nothing_with_it(tmp_path):
    write_run(tmp_path, 200, path=tmp_path / "gone.mp4")
    assert curate_report.main([str(tmp_path), "--sheets", "1"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "gone.mp4: no such file" in page and "data:image" not in page
    assert "No timings are in the folder" in page and not (tmp_path / "order.txt").exists()


def test_a_name_from_a_film_is_no_html(run):
    table = ClipFile.open(run)
    judging = table.judging
    text = "silence <= 0.8 and name != '<script>alert(1)</script>'"
    write_run(run, 100, type(judging)(Judge.of({"odd": text}), judging.sound))
    curate_report.main([str(run), "--sheets", "0"])
    assert "<script>" not in (run / "report.html").read_text()


def _table(count=1000):
    """A cheap filter that drops a tenth, a dear one that drops half, a middling one that drops none."""
    return pa.table(
        {
            "silence": [0.9 if i % 10 == 0 else 0.1 for i in range(count)],
            "desync": [1.0 if i % 2 else 0.0 for i in range(count)],
            "dnsmos_ovrl": [4.0] * count,
            "duplicate_of": pa.array(["0a" if i % 3 else None for i in range(count)]),
            "reasons": ["{}"] * count,
        }
    )


def test_the_derived_order_measures_least_of_all_orders():
    texts = {"dear": "desync <= 0.5", "clear": "dnsmos_ovrl >= 2", "audible": "silence <= 0.8", "first": "True"}
    texts |= {"unique": "duplicate_of is None"}
    seconds = {"desync": StepSeconds("desync", 200.0, 100), "dnsmos": StepSeconds("dnsmos", 50.0, 100)}
    seconds |= {"decode": StepSeconds("decode", 30.0, 100)}

    def counted(order):
        counter = OrderCounter(Judge.of(texts, order=order).filters)
        counter.add(_table())
        return counter

    derived = counted(list(texts)).order(seconds)
    assert [each.name for each in derived] == ["audible", "first", "dear", "clear", "unique"]
    costs = [clip_seconds(counted(order).as_given(seconds)) for order in itertools.permutations(texts)]
    assert clip_seconds(derived) == pytest.approx(min(costs)) and max(costs) > 1.2 * min(costs)
    # 90 % come to the dear one, which reads the clip, and 40 % to what follows.
    assert clip_seconds(derived) == pytest.approx(0.9 * (0.3 + 2.0) + 0.4 * 0.5)
    assert counted(list(texts)).order(seconds) == derived


def test_a_clip_is_explained(run, capsys):
    table = ClipFile.open(run)
    rows = [row for part in table.tables() for row in part.to_pylist()]
    silent = next(row for row in rows if row["dropped_by"] == "audible")
    assert curate_explain.main([str(run), silent["clip_id"][:14]]) == 0
    said = capsys.readouterr().out
    assert f"clip {silent['clip_id']}" in said and "dropped by audible" in said
    assert re.search(r"filter audible +false +silence <= 0\.8", said)
    assert re.search(r"desync +not measured: audible dropped the clip before +\[0 to 2\]", said)
    assert "audible wants <= 0.8" in said
    unsure = next(row for row in rows if row["verdict"] == "unknown" and row["dropped_by"] == "agreeing")
    curate_explain.main([str(run), unsure["clip_id"]])
    said = capsys.readouterr().out
    assert "unknown, as it cannot be decided: agreeing" in said and "none: the clip is too short for it" in said
    kept = next(row for row in rows if row["verdict"] == "keep" and row["gain_db"])
    curate_explain.main([str(run), kept["clip_id"]])
    assert re.search(r"made [\d.]+ dB (louder|softer)", capsys.readouterr().out)


def test_damaged_timings_are_told(run):
    (run / "timings" / "zz.parquet").write_bytes(b"nothing")
    with pytest.raises(MovaError, match="timings in .* cannot be read"):
        curate_report.main([str(run), "--sheets", "0"])
