"""Whole runs of `mova curate`: films of all kinds, good and bad, from the command line to the tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curation.caption_rows import telling
from small_films import write_film, write_films

from mova_engine.config.curation_recipes import load_curation
from mova_engine.curation.curation_run import Curation
from mova_engine.errors import MovaError

pytest.importorskip("cv2")
pytest.importorskip("silero_vad")

SETTINGS = {"clip": {"frames": 25}, "workers": 1}


def curate(films: Path, out: Path, say=None, **settings):
    return Curation(load_curation(raw=[str(films)], out=str(out), **SETTINGS, **settings), say).run()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Films, among them what is none, and their curation: the folder of both, and its result."""
    place = tmp_path_factory.mktemp("curated")
    films = place / "films"
    write_films(films, 3)
    write_film(films / "with 🎬 and\nbreak.mp4", 7)
    (films / "nothing.mp4").touch()
    (films / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    (films / "copy.mp4").write_bytes((films / "film 00.mp4").read_bytes())
    whole = (films / "film 01.mp4").read_bytes()
    (films / "cut off.mp4").write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    return place, curate(films, place / "out", said.append, most_failed=0.9), said


def failures(out):
    return [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]


def test_the_table_has_a_row_for_each_clip(run):
    place, result, _ = run
    table = pq.read_table(place / "out" / "clips.parquet")
    rows = table.to_pylist()
    assert len(rows) == result.funnel.clips >= 12
    assert [(row["name"], row["start"]) for row in rows] == sorted((row["name"], row["start"]) for row in rows)
    assert len({row["clip_id"] for row in rows}) == len(rows)
    assert {row["verdict"] for row in rows} == {"keep", "drop"}
    # Every third film is silent.
    assert all((row["dropped_by"] == "audible") == (row["name"] == "films/film 02.mp4") for row in rows)
    assert {row["frames"] for row in rows} == {25}
    named = "films/with 🎬 and\nbreak.mp4"
    assert named in {row["name"] for row in rows}


def test_kept_clips_are_a_list_that_training_takes(run):
    from mova_engine.data.metadata import read_metadata

    place, result, _ = run
    entries = read_metadata(place / "out")
    refused = [each for each in failures(place / "out") if each["step"] == "write"]
    assert len(entries) == result.funnel.verdicts["keep"] - len(refused) > 0
    assert refused and all("name of its film holds a control character" in each["reason"] for each in refused)
    assert all(Path(entry.path).is_file() for entry in entries)


def test_bad_files_are_rows_with_reasons_and_the_others_go_on(run):
    place, result, said = run
    found = [each for each in failures(place / "out") if each["step"] != "write"]
    assert {each["name"] for each in found} == {"films/nothing.mp4", "films/noise.mp4", "films/cut off.mp4"}
    assert all(each["reason"] and str(place) not in each["reason"] for each in found)
    assert not result.too_many and len(found) == len(result.failures) == result.funnel.films.failed
    assert all("\n" not in line for line in said)


def test_a_second_run_measures_nothing_and_writes_the_same(run):
    place, _, _ = run
    names = ("clips.parquet", "metadata.jsonl", "funnel.json", "failures.jsonl")
    before = {name: (place / "out" / name).read_bytes() for name in names}
    parts = {path: path.stat().st_mtime_ns for path in (place / "out" / "ledger").rglob("*.parquet")}
    timings = set((place / "out" / "timings").iterdir())
    result = curate(place / "films", place / "out", most_failed=0.01)
    assert {name: (place / "out" / name).read_bytes() for name in names} == before
    assert {path: path.stat().st_mtime_ns for path in (place / "out" / "ledger").rglob("*.parquet")} == parts
    assert set((place / "out" / "timings").iterdir()) == timings
    assert result.too_many


def test_a_folder_of_other_sources_is_not_gone_on_with(run, tmp_path):
    place, _, _ = run
    write_films(tmp_path / "others", 1)
    with pytest.raises(MovaError, match="holds clips of .*films, which is left out now; give another --out"):
        curate(tmp_path / "others", place / "out")
    with pytest.raises(MovaError, match="holds something else than a curation"):
        curate(place / "films", place / "films")


def test_what_this_machine_lacks_is_refused_before_any_film_is_read(run, tmp_path, monkeypatch):
    place, _, _ = run
    with pytest.raises(MovaError, match="the filters need the score desync, which cannot be measured: weights missing"):
        curate(place / "films", tmp_path / "out", filters={"early": "desync <= 0.5"})
    with pytest.raises(MovaError, match="filter wrong"):
        curate(place / "films", tmp_path / "out", filters={"wrong": "beauty > 1"})
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(MovaError, match="the environment variable NO_SUCH_KEY"):
        captions = {"url": "http://localhost:1/v1", "model": "omni", "key_variable": "NO_SUCH_KEY"}
        curate(place / "films", tmp_path / "out", captions=captions)
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(run, tmp_path):
    place, _, _ = run
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mova_engine", "curate", str(place / "films"), "--out", str(out)]
    command += ["--clip.frames", "25", "--workers", "1", "--most-failed", "1"]
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))"
    limited = f"import os, resource, sys; {limit}; os.execv(sys.argv[1], sys.argv[1:])"
    ended = subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "File too large" in lines[0]
    assert not (out / "clips.parquet").exists()
    subprocess.run(command, capture_output=True, check=True)
    assert (out / "clips.parquet").read_bytes() == (place / "out" / "clips.parquet").read_bytes()


@pytest.mark.long
def test_units_whose_workers_die_are_put_aside_until_they_are_to_be_tried_again(tmp_path):
    write_films(tmp_path / "films", 2)
    # No worker can live with so little.
    little = {"engines": {"worker_memory": 0.1}, "most_failed": 1.0}
    result = curate(tmp_path / "films", tmp_path / "out", **little)
    reason = "more than 0.1 GiB of memory"
    assert [(each.step, each.reason, each.attempts) for each in result.failures] == [("cut", reason, 3)] * 2
    assert result.funnel.films.failed == result.funnel.films.units == 2 and result.funnel.clips == 0
    # They are not tried again, whatever memory there is.
    again = curate(tmp_path / "films", tmp_path / "out", most_failed=1.0)
    assert again.failures == result.failures and not again.too_many
    tried = curate(tmp_path / "films", tmp_path / "out", retry=True)
    assert tried.failures == () and tried.funnel.clips > 0


@pytest.mark.long
def test_ray_and_the_pool_give_the_same_bytes(run, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    place, _, _ = run
    curate(place / "films", tmp_path / "ray", engine="ray", most_failed=0.9)
    for name in ("clips.parquet", "metadata.jsonl", "funnel.json", "failures.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (place / "out" / name).read_bytes(), name
    ledgers = [
        {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "ledger").rglob("*.parquet")}
        for out in (place / "out", tmp_path / "ray")
    ]
    assert ledgers[0] == ledgers[1]


@pytest.mark.long
@pytest.mark.skipif(os.name != "posix", reason="process groups")
def test_kills_of_a_whole_run_lose_nothing(tmp_path):
    from curation_kills import kill_rounds

    write_films(tmp_path / "films", 6)
    assert kill_rounds(tmp_path / "films", tmp_path, kills=3) >= 1


@pytest.mark.long
def test_a_clip_whose_captioning_failed_is_not_trained_on_with_another_caption(tmp_path):
    write_films(tmp_path / "films", 2)
    told = "somebody else's words about the whole film"
    lines = [json.dumps({"video_path": f"film {i:02}.mp4", "caption": told}) + "\n" for i in range(2)]
    (tmp_path / "films" / "metadata.jsonl").write_text("".join(lines))
    out = tmp_path / "out"
    with telling(picture=400) as server:
        captions = {"url": server.url, "model": "sees", "roles": ["picture", "sound"]}
        assert curate(tmp_path / "films" / "metadata.jsonl", out, captions=captions).too_many
    table = pq.read_table(out / "clips.parquet").to_pylist()
    kept = [row for row in table if row["verdict"] == "keep"]
    assert kept and all(row["caption"] is None for row in kept)
    assert all(row["caption"] == told for row in table if row["verdict"] == "drop")
    assert (out / "metadata.jsonl").read_text() == ""
    assert {each["step"] for each in failures(out)} == {"caption"} and len(failures(out)) == len(kept)


@pytest.mark.long
def test_parts_of_a_film_that_overlap_give_a_clip_once(tmp_path):
    write_film(tmp_path / "film.mp4", 1, 6.0)
    rows = ["video_path,caption,start,end", *(f"film.mp4,{end} s,0,{end}" for end in (3, 6)), "film.mp4,all,,"]
    (tmp_path / "parts.csv").write_text("\n".join(rows) + "\n")
    curate(tmp_path / "parts.csv", tmp_path / "out", filters={"unique": "duplicate_of is None"})
    table = pq.read_table(tmp_path / "out" / "clips.parquet").to_pylist()
    assert len({row["name"] for row in table}) >= 2 and len({row["clip_id"] for row in table}) == len(table) > 4
    # The whole comes first, by its name; parts add the clips alone that it does not have.
    starts = [row["start"] for row in table if row["name"] == "parts.csv/film.mp4"]
    assert starts == sorted({row["start"] for row in table})[: len(starts)]


@pytest.mark.long
def test_a_score_with_the_name_of_a_label_fills_no_second_column(tmp_path):
    write_films(tmp_path / "films", 1)
    curate(tmp_path / "films", tmp_path / "out", also=["shots", "av-align"], measure="all")
    names = pq.ParquetFile(tmp_path / "out" / "clips.parquet").schema_arrow.names
    assert len(set(names)) == len(names) and {"shots", "shot_seconds_shortest"} <= set(names)
    rows = pq.read_table(tmp_path / "out" / "clips.parquet").to_pylist()
    assert all(row["shots"] == len(row["cuts"]) + 1 for row in rows)
    assert all(row["av_align"] is not None for row in rows)
