"""A unit's work, in this process: what is measured, what is not, and what is stored where it is interrupted."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_films import write_film

from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.curation_folder import CurationFolder
from mova_engine.curation.judging import Judging
from mova_engine.curation.unit_run import UnitWork
from mova_engine.curation.unit_steps import UnitSteps
from mova_engine.curation.units import SourceFile, Unit
from mova_engine.files.digests import Digests
from mova_engine.scores import score_table
from mova_engine.scores.opened_runner import open_runner

pytest.importorskip("cv2")
pytest.importorskip("silero_vad")

FILTERS = {"audible": "silence <= 0.5", "meeting": "av_align >= 0"}


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    """A film that can be heard, and a silent one."""
    folder = tmp_path_factory.mktemp("films")
    digests = Digests(folder / "digests", lambda path, data: None)
    paths = {
        name: write_film(folder / f"{name}.mp4", i, loud=name == "loud") for i, name in enumerate(("loud", "mute"))
    }
    return {
        name: Unit(SourceFile(path, f"films/{path.name}", "films"), digests.of(path)) for name, path in paths.items()
    }


@pytest.fixture(scope="module")
def done(units, tmp_path_factory):
    """A ledger with both films, and what their runs did."""
    out = tmp_path_factory.mktemp("done")
    return out, {name: run(work_of(out), unit) for name, unit in units.items()}


@pytest.fixture
def out(done, tmp_path):
    """A copy of it."""
    return Path(shutil.copytree(done[0], tmp_path / "out"))


def work_of(out: Path, **settings) -> UnitWork:
    given = {"raw": ["films"], "out": str(out), "clip": {"frames": 25}, "marks": {}}
    config = replace(load_curation(**given), **{"filters": FILTERS, **settings})
    judge = Judging.of(config).judge
    return UnitWork(
        out, config, tuple(each.name for each in judge.filters), UnitSteps.of(config, judge, open_runner(config))
    )


def run(work: UnitWork, unit: Unit, beat=lambda now: None):
    return work.opened()(unit, beat)


def rows(work: UnitWork, unit: Unit, score: str) -> list:
    part = CurationFolder(work.out).ledger.read(work.steps.scores[score], unit.key)
    return [] if part is None else list(part.rows)


def stored(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "ledger").rglob("*.parquet")}


def test_a_clip_that_a_filter_drops_is_not_measured_further(units, done, out):
    work, loud, mute = work_of(out), *done[1].values()
    assert loud.clips == loud.alive == loud.measured["av-align"] == loud.measured["decode"] >= 3
    assert mute.clips >= 3 and mute.alive == 0 and mute.measured.keys() == {"cut"}
    assert len(rows(work, units["loud"], "av-align")) == loud.clips and rows(work, units["mute"], "av-align") == []
    assert all(0 <= row["av_align"] <= 1 or row["reason"] for row in rows(work, units["loud"], "av-align"))


def test_all_is_measured_where_that_is_asked_for(units, out):
    mute = run(work_of(out, measure="all"), units["mute"])
    assert mute.alive == 0 and mute.measured["av-align"] == mute.clips


def test_what_is_there_is_not_measured_again(units, out):
    before = stored(out)
    assert run(work_of(out), units["loud"]).measured == {}
    assert stored(out) == before


def test_a_changed_threshold_measures_only_clips_that_come_back(units, out):
    stricter = {"audible": "silence <= 0.01", "meeting": "av_align >= 0.9"}
    assert run(work_of(out, filters=stricter), units["loud"]).measured == {}
    looser = work_of(out, filters={**FILTERS, "audible": "silence <= 1"})
    assert run(looser, units["loud"]).measured == {}
    found = run(looser, units["mute"])
    assert found.measured == {"decode": found.clips, "av-align": found.clips}


@pytest.mark.long
def test_a_changed_score_measures_only_itself(units, done, out, monkeypatch):
    clips = done[1]["loud"].clips
    # Nothing but the added score is measured.
    assert run(work_of(out, also=("dnsmos",)), units["loud"]).measured == {"decode": clips, "dnsmos": clips}
    before = stored(out)
    changed = replace(score_table.SCORES["av-align"], version=99)
    monkeypatch.setitem(score_table.SCORES, "av-align", changed)
    again = run(work_of(out, also=("dnsmos",)), units["loud"])
    assert again.measured == {"decode": clips, "av-align": clips}
    added = stored(out).keys() - before.keys()
    assert [name.split("/")[1].rpartition("-")[0] for name in added] == ["score-av-align"]


def test_another_length_of_clips_cuts_anew(units, out):
    config = work_of(out).config
    longer = work_of(out, clip=replace(config.clip, frames=49))
    found = run(longer, units["loud"])
    assert found.measured["cut"] == found.measured["av-align"] == found.clips == 1
    # The clips of before keep their numbers.
    assert run(work_of(out), units["loud"]).measured == {}


def test_what_was_measured_is_stored_where_a_unit_is_interrupted(units, done, tmp_path):
    def interrupted(now):
        seen.append(now)
        if len(seen) > beats:
            raise SystemExit(0)

    seen: list[str] = []
    # The first beat is the cut's, the others each before a clip is measured.
    beats = 2
    cut_off = work_of(tmp_path)
    with pytest.raises(SystemExit):
        run(cut_off, units["loud"], interrupted)
    assert len(rows(cut_off, units["loud"], "av-align")) == beats - 1
    rest = run(cut_off, units["loud"])
    assert rest.measured["av-align"] == done[1]["loud"].clips - (beats - 1)
    run(cut_off, units["mute"])
    assert stored(tmp_path) == stored(done[0])
