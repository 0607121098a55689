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


@pytest.mark.parametrize("name", exposed.RUNS)
def test_overlap_sends_as_many_bytes_and_exposes_fewer(name):
    first, *_, last = [row for row in ROWS if row["run"] == name]
    assert first["bytes_sent"] == last["bytes_sent"]

    def waits(row, kind):
        exposures = row["timeline"]["exposed"].items()
        return sum(seconds for each, seconds in exposures if each.startswith(kind))

    assert waits(last, "all_to_all") < 0.3 * waits(first, "all_to_all")
    assert waits(last, "send") <= 0.2 * waits(first, "send")


def test_a_report_of_another_commit_names_its_run_and_commit(tmp_path):
    with pytest.raises(MovaError, match="say with --only of which run it is the report, and with --commit"):
        exposed.main(["--take", str(tmp_path / "report.json"), "--out", str(tmp_path / "rows.json")])
    with pytest.raises(MovaError, match="--only sample: the runs are lora, phase3"):
        exposed.main(["--only", "sample", "--out", str(tmp_path / "rows.json")])
