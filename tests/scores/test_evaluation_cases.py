"""The recorded cases of the reference's evaluation: every tensor and value within the bound stated for it."""

from pathlib import Path

import pytest
import torch

from mova_engine.errors import MovaError
from mova_engine.ops import bind
from mova_engine.parity.case import CaseDevice, GoldenCase
from mova_engine.parity.evaluation.case_bounds import Bound, EvaluationOutcome, judge_evaluation
from mova_engine.parity.evaluation.evaluation_runner import EVALUATION_RUNNERS
from mova_engine.parity.evaluation.recipe_weights import recipe_weights
from mova_engine.parity.runner import run_case

GOLDEN_EVAL = Path(__file__).resolve().parents[1] / "data" / "golden_eval"
# Cases that cost less than a second; the others run networks of official size.
SMALL = {
    "case10_audiobox",
    "case10_eat",
    "case11_decoding",
    "case12_video_reward",
    "case1_faces",
    "case3_imagebind",
    "case4_set_metrics",
    "case8_cpcer",
    "case9_loudness",
}


def _marked(name):
    return name if name in SMALL else pytest.param(name, marks=pytest.mark.networks)


@pytest.mark.parametrize("name", [_marked(name) for name in sorted(EVALUATION_RUNNERS)])
def test_recorded_case(backend, name):
    rows = run_case(GoldenCase(GOLDEN_EVAL, name), CaseDevice(bind(backend), backend.device()))
    missed = [f"{row.tensor}: {row.difference} > {row.bound} {row.note}" for row in rows if not row.passed]
    assert rows
    assert not missed, "; ".join(missed)


@pytest.mark.parametrize(
    ("of", "within"), [("maximum", [0.01, 0, 0]), ("absolute", [0.01, 0, 0]), ("relative", [0.001, 0.1, 10])]
)
def test_a_bound_is_in_the_units_that_it_names(of, within):
    """Recorded 0.1, 10 and 1000: a hundredth of the largest is 10, of each its own 0.001, 0.1 and 10."""
    recorded = torch.tensor([0.1, 10.0, 1000.0])
    bound = Bound(0.0101, of)
    assert bound.difference(recorded + torch.tensor(within), recorded) <= bound.limit
    assert bound.difference(recorded + 2 * torch.tensor(within), recorded) > (0 if of == "maximum" else bound.limit)
    assert bound.difference(recorded + torch.tensor([0, 0, 25.0]), recorded) > bound.limit
    assert bound.difference(recorded[:2], recorded) == float("inf")
    assert bound.difference(torch.full_like(recorded, float("nan")), recorded) == float("inf")


def test_numbers_below_a_level_have_a_wider_limit():
    recorded = torch.tensor([-70.0, -50.0])
    bound = Bound(0.01, "absolute", below=(-60.0, 5.0))
    assert bound.difference(recorded + torch.tensor([0.04, 0.009]), recorded) <= bound.limit
    for off in ([0.06, 0.0], [0.0, 0.02]):
        assert bound.difference(recorded + torch.tensor(off), recorded) > bound.limit


def _values(tmp_path, text):
    (tmp_path / "case.json").write_text(f'{{"case": "case", "values": {text}}}')
    return GoldenCase(tmp_path, "case")


def test_values_that_nobody_produces_and_others_are_misses(tmp_path):
    case = _values(tmp_path, '{"a": {"b": [1, 2]}, "word": "x", "none": null, "rows": [{"c": 1.5}], "left": 3}')
    produced = {"a": {"b": [1, 2]}, "word": "x", "none": None, "rows": [{"c": 1.5}]}
    rows = {r.tensor: r.passed for r in judge_evaluation(case, {}, EvaluationOutcome(values=produced), {}, {})}
    assert rows == {
        "values.a.b": True,
        "values.word": True,
        "values.none": True,
        "values.rows.0.c": True,
        "values.left": False,
    }
    for path, other in (("a", {"b": [1, 3]}), ("word", "y"), ("none", 0), ("rows", [{"c": 1.6}])):
        changed = produced | {path: other}
        found = judge_evaluation(case, {}, EvaluationOutcome(values=changed), {}, {"values.left": "not asked"})
        assert [row.tensor for row in found if not row.passed], path


def test_a_recipe_s_weights_are_those_of_their_checksums(tmp_path):
    text = (GOLDEN_EVAL / "recipe_syncnet.json").read_text()
    (tmp_path / "recipe.json").write_text(text.replace('"seed": 21698554', '"seed": 21698555'))
    with pytest.raises(MovaError, match="another checksum"):
        recipe_weights(tmp_path / "recipe.json", {})
