"""The judgement finds mutants of the operators wrong; `python tests/ops/mutants.py` tries all and prints a table."""

import pytest
import torch
from ops.mutants import Bench, campaign, dtypes_of, mutants_of, not_offered

from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import judge

# A few mutants of small operators belong to every test run.
QUICK = ("rms_norm", "norm_modulate", "gate_residual", "bias_gelu", "merge_lse")
SMALL = ("nano", "every-kind", "tails", "one-token", "three-shards", "nano-no-gate")
ALL = [(name, dtype) for name, operator in OPERATORS.items() for dtype in dtypes_of(operator)]


def _lives(operator, dtype, share, cases=None):
    verdicts = list(campaign(operator, dtype, share, seed=2026, bench=Bench(operator, dtype, cases)))
    assert sum(verdict == "killed" for _, verdict in verdicts) > 0.7 * len(verdicts)
    return [str(mutant) for mutant, verdict in verdicts if verdict == "LIVES"]


@pytest.mark.parametrize("name", QUICK)
def test_a_sample_of_mutants_is_killed_in_bfloat16(name):
    operator = OPERATORS[name]
    few = tuple(case for case in cases_of(operator) if case.name in SMALL)
    assert _lives(operator, torch.bfloat16, 0.02, few) == []


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("name", "dtype"), ALL, ids=[f"{name}-{str(dtype)[6:]}" for name, dtype in ALL])
def test_every_mutant_is_killed(name, dtype):
    assert _lives(OPERATORS[name], dtype, 1.0) == []


def test_what_has_no_mutants_is_what_no_implementation_is_made_for():
    """Weights and moments of an optimizer are float32, products of fp8 numbers are given in bfloat16, and no
    run trains in float16.
    """
    assert not_offered() == {
        "adamw": ["bfloat16", "float16"],
        "adamw_8bit": ["bfloat16", "float16"],
        "fp8_linear": ["float32", "float16"],
        "fp8_trained_linear": ["float32", "float16"],
        "newton_schulz": ["float16"],
    }


def test_mutants_are_made_at_every_kind_of_place():
    operator = OPERATORS["norm_modulate"]
    case = [c for c in cases_of(operator) if c.name == "one-token"]
    kinds = {mutant.where[0] for mutant in mutants_of(operator, torch.bfloat16, case)}
    assert kinds == {"argument", "result", "forward", "backward"}


def test_the_reference_is_no_mutant():
    """A judgement that finds everything wrong would kill all mutants too."""
    for name in QUICK:
        operator = OPERATORS[name]
        bench = Bench(operator, torch.bfloat16, cases_of(operator)[-3:])
        for made in bench.made.values():
            assert all(f.passed for f in judge(operator, ((trial, trial.expected) for trial in made)))
