"""Simulated waits for collectives: the page that quotes them, and the planner beside them."""

import pytest

from benchmarks import exposed_communication as exposed
from mova_engine.errors import MovaError
from mova_engine.files.results import read_result
from mova_engine.rehearsal.simulated_streams import StepTimeline
from source_tree import ROOT

ROWS = read_result(exposed.RESULT)["rows"]


def test_the_page_quotes_the_file():
    """After a run: `python -m benchmarks.exposed_communication --table` between the two comments."""
    page = (ROOT / "docs" / "rehearsal.md").read_text()
    quoted = page.split("<!-- exposed communication -->")[1].split("<!-- end of exposed communication -->")[0]
    assert quoted.strip() == exposed.table(ROWS)


@pytest.mark.parametrize("name", exposed.RUNS)
def test_the_planner_agrees_with_the_simulation_at_full_size(name):
    """With the newest row; `test_step_clock.py` simulates anew with three layers."""
    row = [row for row in ROWS if row["run"] == name][-1]
    found = StepTimeline.from_dict(row["timeline"])
    assert exposed.planned_waits(name) == pytest.approx(found.waiting, rel=0.15)


def waits(row: dict, *kinds: str) -> float:
    exposures = row["timeline"]["exposed"].items()
    return sum(seconds for each, seconds in exposures if each.startswith(kinds))


@pytest.mark.parametrize("name", ["lora", "phase3"])
def test_exchanges_beside_attention_send_as_many_bytes_and_expose_fewer(name):
    before, after, *_ = [row for row in ROWS if row["run"] == name]
    assert before["bytes_sent"] == after["bytes_sent"]
    assert waits(after, "all_to_all") < 0.3 * waits(before, "all_to_all")
    assert waits(after, "send") <= 0.2 * waits(before, "send")


@pytest.mark.parametrize(
    ("name", "ahead", "left"), [("lora", "weights", 0.1), ("phase3", "weights", 0.5), ("phase3", "all", 0.06)]
)
def test_a_layer_ahead_sends_as_many_bytes_and_exposes_fewer(name, ahead, left):
    by_unit, by_layer = ([row for row in ROWS if row["run"] == each][-1] for each in (name, f"{name}-{ahead}"))
    assert by_unit["commit"] == by_layer["commit"] and by_unit["bytes_sent"] == by_layer["bytes_sent"]
    fsdp = "all_gather", "reduce_scatter"
    assert waits(by_layer, *fsdp) < left * waits(by_unit, *fsdp)
    # With weights ahead the peak is where it was: in the backward's first layers, which have no bridge.
    more = by_layer["peak_memory_bytes"] - by_unit["peak_memory_bytes"]
    assert 3e9 < more < 5e9 if ahead == "all" else abs(more) < 1e6


def test_a_report_of_another_commit_names_its_run_and_commit(tmp_path):
    with pytest.raises(MovaError, match="say with --only of which run it is the report, and with --commit"):
        exposed.main(["--take", str(tmp_path / "report.json"), "--out", str(tmp_path / "rows.json")])
    with pytest.raises(MovaError, match="--only sample: the runs are lora, lora-weights, phase3, "):
        exposed.main(["--only", "sample", "--out", str(tmp_path / "rows.json")])
