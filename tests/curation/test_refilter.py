"""Other filters over a run's stored numbers: what they would change, and the files that they write."""

import json

import pytest

from mova_engine.commands import curate_refilter
from mova_engine.errors import MovaError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from synthetic_clips import FILTERS, synthetic_judging, write_run  # noqa: E402

from mova_engine.curation.clip_file import ClipFile  # noqa: E402
from mova_engine.curation.funnel import read_funnel  # noqa: E402
from mova_engine.curation.refilter import changed_judging, refilter, write_refiltered  # noqa: E402

COUNT = 3000


@pytest.fixture
def run(tmp_path):
    """A run's folder whose table has several row groups."""
    write_run(tmp_path / "run", COUNT, piece=700)
    return tmp_path / "run"


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def verdicts(out):
    rows = pq.read_table(out / "clips.parquet", columns=["verdict", "dropped_by"]).to_pylist()
    return [(row["verdict"], row["dropped_by"]) for row in rows]


def test_the_same_filters_change_nothing(run):
    before, file = files(run), ClipFile.open(run)
    assert file.rows == COUNT
    found = refilter(file, file.judging)
    assert {pair for pair in found.changes if pair[0] != pair[1]} == set()
    assert found.funnel == read_funnel(run)
    assert files(run) == before


def test_a_funnel_counts_every_clip_once(run):
    funnel, rows = read_funnel(run), verdicts(run)
    assert funnel.clips == COUNT and sum(funnel.verdicts.values()) == COUNT
    left = COUNT
    for each in funnel.filters:
        assert each.clips == left
        assert each.dropped == rows.count(("drop", each.name)) > 0
        assert each.unknown == rows.count(("unknown", each.name))
        left -= each.dropped
    assert left == funnel.verdicts["keep"] + funnel.verdicts["unknown"]
    assert funnel.seconds["keep"] == pytest.approx(funnel.verdicts["keep"] * 193 / 24, abs=1e-2)
    assert sum(sum(counts.values()) for counts in funnel.kinds.values()) == COUNT


def test_what_is_written_is_what_a_run_with_these_filters_writes(run, tmp_path):
    file = ClipFile.open(run)
    judging = changed_judging(file.judging, None, {"audible": "silence <= 0.5", "quiet": "lufs < -10"}, ["lips"])
    found = refilter(file, judging)
    assert found.changes["keep", "drop"] > 0 and found.changes["unknown", "keep"] > 0
    write_refiltered(file, found)
    texts = {name: text for name, text in FILTERS.items() if name != "lips"}
    texts |= {"audible": "silence <= 0.5", "quiet": "lufs < -10"}
    write_run(tmp_path / "afresh", COUNT, synthetic_judging(texts), piece=700)
    assert pq.read_table(run / "clips.parquet").equals(pq.read_table(tmp_path / "afresh" / "clips.parquet"))
    written, afresh = files(run), files(tmp_path / "afresh")
    assert written["metadata.jsonl"] == afresh["metadata.jsonl"] and written["funnel.json"] == afresh["funnel.json"]
    assert ClipFile.open(run).judging == judging


def test_what_was_not_measured_is_told(run):
    """Silent clips were dropped before their agreement was measured: with another filter they are unknown."""
    file = ClipFile.open(run)
    silent = [row for row in pq.read_table(run / "clips.parquet").to_pylist() if '"desync"' not in row["reasons"]]
    silent = [row for row in silent if row["desync"] is None]
    assert {row["verdict"] for row in silent} == {"drop", "unknown"}
    found = refilter(file, changed_judging(file.judging, "desync <= 0.5 or imagebind >= 0.2", {}))
    assert found.unmeasured == {"desync": len(silent), "imagebind": len(silent)}
    assert found.funnel.verdicts["unknown"] > len(silent), "others have a reason"


def test_the_list_has_what_readers_are_to_do(run):
    table = pq.read_table(run / "clips.parquet")
    kept = [row for row in table.to_pylist() if row["verdict"] == "keep"]
    lines = [json.loads(line) for line in (run / "metadata.jsonl").read_text().splitlines()]
    assert len(lines) == len(kept) > 0
    for line, row in zip(lines, kept, strict=True):
        assert line["id"] == row["clip_id"] and line["start"] == row["start"] and "crop" not in line
        assert line.get("gain_db", 0) == row["gain_db"] and line.get("sound_shift", 0) == row["sound_shift"]
    assert any("sound_shift" in line for line in lines) and any("gain_db" in line for line in lines)


def test_the_command_writes_only_when_it_is_told_to(run, capsys):
    before = files(run)
    where = ["--where", "silence <= 0.3"]
    assert curate_refilter.main([str(run), *where]) == 0
    said = capsys.readouterr().out
    assert "keep -> drop" in said and "nothing was written" in said and files(run) == before
    assert curate_refilter.main([str(run), *where, "--write"]) == 0
    assert "written: " in capsys.readouterr().out and files(run).keys() == before.keys()
    assert curate_refilter.main([str(run)]) == 0
    assert "no verdict changes" in capsys.readouterr().out
    assert {name for _, name in verdicts(run)} == {None, "where"}


def test_clips_that_are_files_are_not_replaced_by_a_list(run):
    (run / "config.yaml").write_text("write: mp4\n")
    before = files(run)
    assert curate_refilter.main([str(run), "--where", "silence <= 0.3"]) == 0
    with pytest.raises(MovaError, match="holds its clips as mp4"):
        curate_refilter.main([str(run), "--where", "silence <= 0.3", "--write"])
    assert files(run) == before


def test_clips_that_come_back_are_not_listed_without_the_captions_that_the_run_writes(run, capsys):
    (run / "config.yaml").write_text("captions: {url: '', sound: {url: 'http://localhost:1/v1', model: hears}}\n")
    before = files(run)
    with pytest.raises(MovaError, match="has captions of its own, and [0-9]+ clips that none were written of"):
        curate_refilter.main([str(run), "--without", "audible", "--without", "lips", "--write"])
    assert files(run) == before
    # Fewer clips need no other captions.
    assert curate_refilter.main([str(run), "--filters.more", "silence <= 0.3", "--write"]) == 0
    assert "written: " in capsys.readouterr().out and files(run) != before


@pytest.mark.parametrize(
    "options, said",
    [
        (["--where", "silense < 1"], "names no column: 'silense'"),
        (["--without", "lip"], "there is no filter 'lip'. Did you mean 'lips'?"),
        (["--where", "silence < 1", "--without", "lips"], "leave out --without"),
        (["--filters.lips", "lse_d <"], "filter lips cannot be read"),
    ],
)
def test_what_it_cannot_judge_by(run, options, said):
    with pytest.raises(MovaError) as refused:
        curate_refilter.main([str(run), *options])
    assert said in str(refused.value)


def test_folders_that_are_no_run(run, tmp_path):
    (run / "clips.parquet").write_bytes((run / "clips.parquet").read_bytes()[:1000])
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "clips.parquet")
    for folder, said in ((run, "cannot be read"), (tmp_path, "is no table of clips"), (tmp_path / "x", "not a folder")):
        with pytest.raises(MovaError, match=said):
            curate_refilter.main([str(folder)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(MovaError, match=r"has no clips\.parquet: mova curate RAW --out"):
        curate_refilter.main([str(tmp_path / "empty")])


def test_a_clip_is_found_by_the_beginning_of_its_name(run):
    file = ClipFile.open(run)
    names = pq.read_table(run / "clips.parquet", columns=["clip_id"])["clip_id"].to_pylist()
    assert file.find(names[-1][:12])["clip_id"] == names[-1]
    assert file.find(names[5])["clip_id"] == names[5]
    with pytest.raises(MovaError, match="several clips"):
        file.find(names[0][:1])
    with pytest.raises(MovaError, match="begins with 'zz'"):
        file.find("zz")
