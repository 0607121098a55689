"""A card's suite without a card: its plan, its files, its report, what its checks find, and what it refuses."""

import json
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from mova_engine.backend import circumstances, get_backend
from mova_engine.bench.card import card_context, card_fp8
from mova_engine.bench.card.card_context import LeftOut, make_context
from mova_engine.bench.card.card_fp8 import time_fp8_layer
from mova_engine.bench.card.card_goals import GOALS
from mova_engine.bench.card.card_operators import _rows_agree
from mova_engine.bench.card.card_predictions import layer_seconds, stack_plan, step_plan
from mova_engine.bench.card.card_report import write_card_report
from mova_engine.bench.card.card_suites import PARTS, START, SUITES, CardUnit, get_suite, part_named, planned_slices
from mova_engine.bench.card.drawn_model import TimedStream, _TimedSource
from mova_engine.bench.card.part_files import PartFiles
from mova_engine.bench.card.slice_runner import plan_text, run_card_suite
from mova_engine.errors import MovaError
from mova_engine.memory.streaming import WeightStream
from mova_engine.memory.weight_sources import HostArena, LayerUnit
from mova_engine.ops import OPERATORS, bind, resolve
from mova_engine.ops.testing.cases import cases_of
from mova_engine.predict.hardware import get_hardware
from mova_engine.predict.step_time import predict
from source_tree import ROOT

HERE = {"device_name": "card", "torch": "2", "triton": None, "platform": "x", "date": "2026-01-02"}


@pytest.fixture(scope="module")
def rehearsal():
    return make_context(get_suite("h100"), "cpu", False)


@pytest.mark.parametrize("name", SUITES)
def test_every_unit_is_planned_once_and_slices_keep_their_minutes(name):
    suite = SUITES[name]
    slices, beyond = planned_slices(suite, 9)
    units = [*(unit for each in slices for unit in each.units), *beyond]
    assert sorted(units, key=str) == sorted(suite.units(), key=str) and len(set(units)) == len(units)
    assert all(each.seconds + START <= each.minutes * 60 or len(each.units) == 1 for each in slices)
    assert sum(each.minutes for each in slices) <= suite.minutes
    # All but what comes last fits the device time.
    necessary = [unit for unit in suite.units() if unit.part not in suite.last]
    assert suite.units()[: len(necessary)] == necessary
    assert {unit.part for unit in beyond} <= {*suite.last}


def test_the_plan_is_printed_without_a_device(capsys):
    assert run_card_suite(["--suite", "h200", "--plan", "--minutes", "9"]) == 0
    assert capsys.readouterr().out.strip() == plan_text("h200", 9)
    assert plan_text("h200", 9).startswith("suite h200: planned seconds, not measured; 15 minutes")
    page = (ROOT / "docs/card.md").read_text()
    for name in ("h100", "h200"):
        assert "".join(f"    {line}\n" for line in plan_text(name, 9).splitlines()) in page, "print it anew"


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_is_a_function_that_measures_units(part):
    assert callable(resolve(part.target)) and part.seconds and all(s > 0 for s in part.seconds.values())


def test_unknown_names_are_refused():
    for words, message in (
        (["--suite", "h10"], "unknown suite 'h10'. Did you mean 'h100'"),
        (["--suite", "h100", "--only", "stak", "--plan"], "unknown part 'stak'. Did you mean 'stack'"),
        (["--suite", "h100", "--minutes", "0"], "--minutes must be more than 0"),
    ):
        with pytest.raises(MovaError, match=message):
            run_card_suite(words)


def test_files_say_what_is_missing_and_refuse_what_is_not_theirs(tmp_path):
    files, suite = PartFiles(tmp_path, "h100", None), get_suite("h100")
    units = suite.units(["parity"])
    assert files.missing(units, retry=False) == units
    files.add(units[0], {"rows": [], "seconds": 1.0}, HERE)
    files.add(units[1], {"failed": "why", "seconds": 1.0}, HERE)
    assert files.missing(units, retry=False) == units[2:] and files.missing(units, retry=True) == units[1:]
    content = json.loads(files.path("parity").read_text())
    assert content["kind"] == "card parity" and list(content["units"]) == [unit.name for unit in units[:2]]
    with pytest.raises(MovaError, match="measured on card, here is another: give another --out"):
        files.check_device({**HERE, "device_name": "another"})
    with pytest.raises(MovaError, match="is of suite h100, this run is of suite h100, rehearsed: give another --out"):
        PartFiles(tmp_path, "h100", "rehearsed").missing(units, retry=False)
    with pytest.raises(MovaError, match="is of suite h100, this run is of suite h200"):
        PartFiles(tmp_path, "h200", None).units("parity")
    files.path("parity").write_text("{}")
    with pytest.raises(MovaError, match="was not written by this command"):
        files.units("parity")


def _step(job, seconds, predicted, **more):
    return {
        "job": job,
        "model": "mova-360p",
        "video_tokens": 43120,
        "median_s": seconds,
        "runs": 3,
        "interval_s": [seconds, seconds],
        "mfu": 0.5,
        "hfu": 0.6,
        "peak_bytes": 70e9,
        "predicted": {"seconds": predicted, "bytes": 60e9, "hidden": {}, "parts": {"offload": 0.25}},
    } | more


def test_the_report_sets_measured_beside_predicted(tmp_path):
    files, suite = PartFiles(tmp_path, "h100", None), get_suite("h100")
    copies = {"copies_s": 0.7, "hidden_s": 0.5, "exposed_s": 0.2}
    rows = {
        "denoise": _step("denoise", 8.0, 10.0),
        "stack": _step("stack", 20.0, 16.0, scaled={"why": "small card"}),
        "lora": _step("lora", 20.0, 16.0, note="planned again"),
    }
    for part, row in rows.items():
        files.add(CardUnit(part, part, 1.0), {"rows": [row], "seconds": 1.0, "commit": "abc"}, HERE)
    streamed = _step("streaming, denoise", 8.0, 8.0, copies=copies)
    files.add(CardUnit("streaming", "denoise", 1.0), {"rows": [streamed], "seconds": 1.0}, HERE)
    judged = {"operator": "rms_norm", "implementation": "triton", "dtype": "bfloat16"}
    verdicts = [
        judged | {"passed": True, "compared": 7, "worst_share": 0.5, "missed": []},
        judged | {"passed": False, "failed": "RuntimeError: no kernel"},
    ]
    files.add(CardUnit("operator-tests", "rms_norm", 1.0), {"rows": verdicts, "failed": "wrong", "seconds": 1.0}, HERE)
    files.add(CardUnit("block", "block", 1.0), {"failed": "it broke | here", "seconds": 1.0}, HERE)
    page = write_card_report(files, suite)
    lines = page.read_text().splitlines()

    def cells(start):
        return next([c.strip() for c in line.split("|")] for line in lines if line.startswith(f"| {start} |"))

    assert "0.80" in cells("denoise") and "1.25" in cells("lora") and "70 GB" in cells("lora")
    assert cells("streaming, denoise") and "500.00 ms" in page.read_text() and "250.00 ms" in page.read_text()
    assert cells(GOALS[4].about)[-2:] == ["reached", ""] and cells(GOALS[5].about)[-2:] == ["missed", ""]
    assert cells("operator-tests")[2] == "7 tensors, the worst at 50% of what is allowed"
    assert cells("operator-tests")[3] == "rms_norm triton bfloat16: RuntimeError: no kernel"
    # A smaller stack than the goal's does not count.
    assert cells(GOALS[2].about)[-2:] == ["not measured", ""]
    assert cells("block")[2:5] == ["block", "failed", "it broke / here"] and cells("parity")[3] == "missing"
    assert "it broke | here" in page.with_suffix(".html").read_text()


def test_a_rehearsal_has_no_ratio_and_reaches_no_goal(tmp_path):
    files = PartFiles(tmp_path, "h100", "rehearsed on cpu: not a measurement")
    files.add(CardUnit("denoise", "denoise", 1.0), {"rows": [_step("denoise", 8.0, 10.0)], "seconds": 1.0}, HERE)
    text = write_card_report(files, get_suite("h100")).read_text()
    assert "**rehearsed on cpu: not a measurement**" in text and "0.80" not in text and "| reached |" not in text


@pytest.mark.parametrize("name", ["rms_norm", "attention"])
def test_a_wrong_row_of_a_result_gets_no_figure(rehearsal, name):
    operator = OPERATORS[name]
    case = next(case for case in cases_of(operator) if case.size == "test")
    inputs = case.make(torch.Generator().manual_seed(0), rehearsal.device, rehearsal.dtype)
    assert _rows_agree(rehearsal, operator, operator.reference, inputs)["rows"] > 1

    def wrong(**given):
        found = operator.reference(**given).clone()
        found[:, -1] = 0
        return found

    with pytest.raises(MovaError, match="rows are off by"):
        _rows_agree(rehearsal, operator, wrong, inputs)


def test_copies_are_hidden_or_exposed():
    """A source that takes its time: what nothing is computed beside is exposed."""
    layers = [torch.nn.Linear(4, 4).requires_grad_(False) for _ in range(3)]
    units = [LayerUnit.of({f"layer{i}": layer}) for i, layer in enumerate(layers)]

    class Slow(HostArena):
        def read(self, unit, buffer):
            time.sleep(0.02)
            super().read(unit, buffer)

    source = _TimedSource(Slow(units, torch.device("cpu")), torch.device("cpu"))
    stream = TimedStream(WeightStream(units, source, "cpu"), source)
    stream.plan(range(3))
    for unit in range(3):
        stream.enter(unit)
    seconds = stream.seconds()
    assert seconds["copies_s"] >= 0.06 and seconds["exposed_s"] >= 0.03
    assert seconds["hidden_s"] == max(seconds["copies_s"] - seconds["exposed_s"], 0)
    stream.reset()
    assert stream.seconds()["copies_s"] == 0
    stream.close()


@pytest.mark.parametrize("layer", part_named("fp8").seconds)
def test_a_layer_in_fp8_is_compared_and_timed_beside_its_own_dtype(rehearsal, layer):
    rows = time_fp8_layer(rehearsal, layer)
    assert [row["implementation"] for row in rows] == ["in its own dtype", "reference"]
    assert len({row["case"] for row in rows}) == 1 and all(row["forward_backward_s"] > 0 for row in rows)
    assert all(0.005 < off < 0.06 for off in rows[1]["off"].values())


def test_fp8_products_that_are_off_get_no_figure(rehearsal):
    table = bind(rehearsal.backend, dtypes=(torch.bfloat16,))
    wrong = table.replaced(fp8_trained_linear=lambda x, w, b: table.fp8_trained_linear(x, w, b) * 1.2)
    with pytest.raises(MovaError, match=r"wrong: fp8 products are off by output 2\.\de-01, .*no speed is reported"):
        card_fp8._deviations(wrong, card_fp8._inputs(rehearsal, 64, 96, 96))
    card = replace(rehearsal, mark=None)
    with pytest.raises(LeftOut, match="this card has no fp8 products"):
        time_fp8_layer(card, "up")


def test_the_planner_fits_the_parts_to_the_card(rehearsal):
    cards = {name: get_hardware(suite.hardware) for name, suite in SUITES.items()}
    config = rehearsal.planned
    blocks = {name: stack_plan(config, card)[0].video.num_layers for name, card in cards.items()}
    assert blocks["h100"] == blocks["h200"] == 40 > blocks["4090"] > 0
    for task in ("inference", "lora"):
        plans = {name: step_plan(task, config, card) for name, card in cards.items()}
        assert all(plan.fits and plan.run.policy.weights != "files" for plan in plans.values())
        assert plans["h200"].run.policy.weights == "device" and plans["4090"].run.policy.weights == "host"


def test_a_layers_prediction_is_its_share_of_a_step(rehearsal):
    """All layers of a kind take most of what the planner has for its component."""
    card = rehearsal.hardware
    plan = step_plan("lora", rehearsal.planned, card, checkpointing="selective")
    whole = predict(plan.run, card).seconds
    video = layer_seconds(rehearsal.planned, card, "video_dit") * 40
    others = layer_seconds(rehearsal.planned, card, "dual_tower_bridge") * 30
    assert 0.7 * whole < video + others < 1.3 * whole


def test_a_card_of_another_suite_is_refused(monkeypatch):
    card = SimpleNamespace(name="cuda", describe=lambda: "NVIDIA H200")
    with pytest.raises(MovaError, match="this card is a NVIDIA H200: give --suite h200"):
        card_context._check_card(get_suite("h100"), card, get_hardware("h100-80gb"))
    with pytest.raises(MovaError, match="suite 910a2 is for Ascend 910A2"):
        card_context._check_card(get_suite("910a2"), card, get_hardware("910a2"))
    card_context._check_card(get_suite("h200"), card, get_hardware("h200"))


def test_parts_with_a_peak_of_their_own_have_their_own_process():
    assert all(part_named(name).apart for name in ("stack", "denoise", "lora", "streaming"))


def test_the_commit_is_told_where_there_is_no_git(monkeypatch, tmp_path):
    def none(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", none)
    monkeypatch.setattr(circumstances, "__file__", str(tmp_path / "mova_engine/backend/circumstances.py"))
    found = circumstances.circumstances
    assert found(get_backend("cpu"))["commit"] is None
    (tmp_path / "COMMIT").write_text("0123abcd\n")
    assert found(get_backend("cpu"))["commit"] == "0123abcd"
    monkeypatch.setenv("MOVA_COMMIT", "4567ef")
    assert found(get_backend("cpu"))["commit"] == "4567ef"
