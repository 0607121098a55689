"""What curation is predicted to take: by hand, by the packaged table, and by a pilot run that it must give back."""

import json

import pytest

from mova_engine.commands import plan_curate
from mova_engine.errors import MovaError
from mova_engine.predict.curation_cost import CurationRates, CurationStage, assumed_rates, known_costs, plan_curation

pytest.importorskip("pyarrow")

from synthetic_clips import write_run

from mova_engine.curation.funnel import read_funnel
from mova_engine.curation.pilot_rates import pilot_rates
from mova_engine.curation.timings import Timings
from mova_engine.curation.unit_run import UnitReport

RECIPES = ("curate-laptop", "curate-mova", "curate-phase2", "curate-phase3")


def test_a_plan_is_clips_times_seconds():
    stages = (
        CurationStage("cut", 0.5, 1.0),
        CurationStage("dear", 4.0, 0.25),
        CurationStage("words", 2.0, 0.1, gpu=True),
    )
    rates = CurationRates(450.0, 8.0, 0.1, stages, 100.0, 20.0, 4e6, "by hand")
    plan = plan_curation(192.0, rates, write=True)
    assert plan.clips == 86400 and plan.kept == 8640 and plan.kept_hours == pytest.approx(19.2)
    assert plan.core_days == {"cut": 0.5, "dear": 1.0} and plan.gpu_days == {"words": pytest.approx(0.2)}
    assert plan.ledger_bytes == 86400 * 120 and plan.written_bytes == 8640 * 4e6
    assert plan.days(3, 1) == pytest.approx(0.5) and plan.days(300, 1) == pytest.approx(0.2)
    with pytest.raises(MovaError, match="give --gpus"):
        plan.days(3, 0)
    assert plan_curation(192.0, rates, write=False).written_bytes == 0


def test_what_filters_drop_is_not_measured_further():
    """Each of three filters passes half of the clips; the second one reads them."""
    filters = [("loudness",), ("dnsmos", "loudness"), ("text",)]
    rates = assumed_rates("any", filters, ("dnsmos", "motion"), 8.0, kept=0.125, write=True, captions=True)
    shares = {each.name: each.share for each in rates.stages}
    assert shares.pop("captions") == shares.pop("write") == 0.125
    assert shares == pytest.approx({"cut": 1, "decode": 1, "loudness": 1, "dnsmos": 0.5, "text": 0.25, "motion": 0.125})
    assert [each.name for each in rates.stages if each.gpu] == ["captions"]
    with pytest.raises(MovaError, match="no seconds of the score clap"):
        assumed_rates("any", [("clap",)], (), 8.0, kept=0.5, write=False, captions=False)
    with pytest.raises(MovaError, match="nothing is published of what any keeps"):
        assumed_rates("any", filters, ("dnsmos", "motion"), 8.0, kept=None, write=False, captions=False)


def test_a_pilot_run_gives_itself_back(tmp_path):
    write_run(tmp_path, 2000)
    timings = Timings(tmp_path / "timings")
    ran = {"cut": 2000, "decode": 1500, "desync": 1500, "fingerprints": 1000}
    took = {"cut": 160.0, "decode": 450.0, "desync": 3000.0, "fingerprints": 20.0}
    timings.add("a", UnitReport(2000, 900, 2e4, seconds=took, measured=ran))
    timings.write()
    rates = pilot_rates(tmp_path, write=False)
    plan = plan_curation(2e4 / 3600, rates, write=False)
    lines = (tmp_path / "metadata.jsonl").read_text().splitlines()
    assert plan.clips == pytest.approx(2000) and plan.kept == pytest.approx(len(lines))
    assert plan.kept_hours == pytest.approx(len(lines) * 193 / 24 / 3600, rel=1e-4)
    assert plan.core_days["cut"] == pytest.approx(160 / 86400)
    # Silent clips were dropped before: those that were measured of all, at two seconds each.
    table_says = next(each.share for each in rates.stages if each.name == "desync")
    assert 0.85 < table_says < 0.95
    assert plan.core_days["desync"] == pytest.approx(2000 * table_says * 2 / 86400)
    # Fingerprints are of what is kept, what cannot be decided, and the repetitions that they find.
    funnel = read_funnel(tmp_path)
    unique = next(each for each in funnel.filters if each.name == "unique")
    printed = funnel.verdicts["keep"] + funnel.verdicts["unknown"] + unique.dropped
    assert unique.dropped > 0 and plan.core_days["fingerprints"] == pytest.approx(printed * 0.02 / 86400)
    table = (tmp_path / "clips.parquet").stat().st_size
    assert plan.ledger_bytes == pytest.approx(table)


def test_a_run_without_timings_predicts_nothing(tmp_path):
    write_run(tmp_path, 50)
    with pytest.raises(MovaError, match="has no timings"):
        pilot_rates(tmp_path, write=False)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_knows_all_that_recipes_measure(recipe, capsys):
    kept = [] if recipe in known_costs()["kept"] else ["--kept", "0.5"]
    assert plan_curate.main(["1000", "--recipe", recipe, *kept, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["core_days"]["cut"] > 0 and plan["clips"] == pytest.approx(1000 * 3600 / (193 / 24))
    assert plan["days"] == pytest.approx(sum(plan["core_days"].values()))
    # Repetitions are sought among what no other filter drops.
    shares = {each["name"]: each["share"] for each in plan["rates"]["stages"]}
    filtered = {share for share in shares.values() if share > plan["kept"] / plan["clips"] * 1.0001}
    assert shares["fingerprints"] == min(filtered) < 1


def test_the_command_says_that_it_predicts(capsys):
    options = ["1000", "--kept", "0.5", "--captions", "--write", "mp4", "--cores", "64"]
    assert plan_curate.main(options) == 0
    said = capsys.readouterr().out
    assert "prediction, not a measurement" in said and "written clips" in said and "days: --gpus" in said
    assert plan_curate.main([*options, "--gpus", "8"]) == 0
    assert "days on 64 cores and 8 GPUs" in capsys.readouterr().out
