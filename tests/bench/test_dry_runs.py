"""The table of rehearsals: which runs there are, what a row holds, going on where it was, the page that quotes it."""

import shlex

import pytest

from benchmarks import dry_runs
from mova_engine.config.recipes import TRAIN
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError
from source_tree import ROOT

SMALL = "train --recipe nano --world-size 1 --device cuda"
REFUSED = "train --recipe joint-phase3 --world-size 1 --device cuda"


def _row(command, **values):
    found = {"command": command, "wall_s": 2.0, "cpu_s": 1.0, "resident_bytes": 4 * 10**8}
    memory = {"peak_memory_bytes": {"a": 10**9, "b": 10**9}, "predicted_memory_bytes": {"c": 19 * 10**8}}
    sent = {"collectives": [{"kind": "all_gather", "calls": 3, "bytes_sent": 5 * 10**9}]}
    return found | (values or memory | sent)


def test_every_run_is_a_command_of_its_own():
    every = list(dry_runs.commands())
    assert len(set(every)) == len(every)
    for device in ("cuda", "npu"):
        of_device = [words for words in every if words.endswith(f"--device {device}")]
        for size in (1, 8, 64, 1024):
            here = [words for words in of_device if f"--world-size {size} " in words]
            assert {words.split()[2] for words in here} >= {*dry_runs.RECIPES, "mova-360p", "mova-720p"}
    for words in every:
        name, *options = shlex.split(words)
        (TRAIN if name == "train" else SAMPLE).parse_both([*options, "--dry-run"])


def test_a_run_in_the_file_is_not_run_again(tmp_path, monkeypatch, capsys):
    asked = []

    def rehearse(command):
        asked.append(command)
        return _row(command, refusal="no") if len(asked) == 1 else _row(command)

    monkeypatch.setattr(dry_runs, "rehearse", rehearse)
    options = ["--out", str(tmp_path / "rows.json"), "--only", "recipe nano --world-size 8 "]
    assert dry_runs.main(options) == 0 and len(asked) == 2
    assert dry_runs.main(options) == 0 and len(asked) == 2
    rows = dry_runs.rows_of(tmp_path / "rows.json")
    assert [row["command"] for row in rows] == asked and all(row["commit"] and row["date"] for row in rows)


def test_a_run_that_breaks_is_no_row(monkeypatch):
    monkeypatch.setattr(dry_runs.sys, "executable", "false")
    with pytest.raises(MovaError, match="recipe nano .*` ended with status 1"):
        dry_runs.rehearse(SMALL)


def test_the_planner_is_asked_again_without_a_rehearsal():
    assert dry_runs.predicted(SMALL).total > 10**7
    with pytest.raises(MovaError, match="this is one process"):
        dry_runs.predicted(REFUSED)


def test_a_table_says_how_far_the_planner_is_off():
    rows = [_row(REFUSED, refusal="one process"), _row(SMALL)]
    page = dry_runs.table(rows)
    assert "| train nano | cuda | 1 | 1 | 0.40 | 2.00 | -5.0 % |  | 3 | 5.00 |" in page
    assert "* `train joint-phase3` on 1: one process" in page


def test_the_page_quotes_the_file():
    """After a run: `python -m benchmarks.dry_runs --table` between the two comments."""
    page = (ROOT / "docs" / "rehearsal.md").read_text()
    quoted = page.split("<!-- dry runs -->")[1].split("<!-- end of dry runs -->")[0]
    assert quoted.strip() == dry_runs.table(dry_runs.rows_of(dry_runs.RESULT))
