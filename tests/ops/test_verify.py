"""The judgement itself: what is wrong must fail it."""

import pytest
import torch

from mova_engine.ops import OPERATORS
from mova_engine.ops.verify import verify

CPU = torch.device("cpu")


def _case(name, case):
    operator = OPERATORS[name]
    return operator, next(c for c in operator.cases if c.name == case)


def _failed(operator, function, case, dtype=torch.float32):
    return {f.tensor for f in verify(operator, function, case, CPU, dtype) if not f.passed}


def test_half_rotation_for_interleaved_fails():
    operator, case = _case("rms_norm_rope", "nano")

    def wrong(**inputs):
        return operator.reference(**inputs | {"interleaved": not inputs["interleaved"]})

    assert "out0" in _failed(operator, wrong, case)


def test_sigmoid_gelu_for_tanh_gelu_fails():
    operator, case = _case("linear_gelu", "nano")

    def wrong(x, weight, bias):
        y = torch.nn.functional.linear(x, weight, bias)
        return y * torch.sigmoid(1.702 * y)

    assert "out0" in _failed(operator, wrong, case)


@pytest.mark.parametrize("broken", ["x", "weight"])
def test_right_values_with_a_wrong_gradient_fail(broken):
    operator, case = _case("rms_norm", "odd-length")

    def wrong(**inputs):
        return operator.reference(**inputs | {broken: inputs[broken].detach()}) + 0 * inputs[broken].sum()

    assert _failed(operator, wrong, case) == {f"grad.{broken}"}


def test_a_lost_gradient_fails():
    operator, case = _case("norm_modulate", "nano")

    def wrong(**inputs):
        return operator.reference(**inputs | {"shift": inputs["shift"].detach()})

    assert "grad.shift" in _failed(operator, wrong, case)


def test_a_different_dtype_fails():
    operator, case = _case("gate_residual", "nano")
    assert "out0" in _failed(operator, lambda **i: operator.reference(**i).float(), case, torch.bfloat16)


def test_nan_from_an_empty_shard_fails():
    operator, case = _case("merge_lse", "empty-shard")

    def wrong(outs, lses):
        lse = torch.logsumexp(lses, 0)
        return (torch.exp(lses - lse).transpose(-1, -2).unsqueeze(-1) * outs).sum(0), lse

    assert "out0" in _failed(operator, wrong, case)


def test_the_reference_passes_its_own_judgement():
    operator, case = _case("attention", "self")
    assert not _failed(operator, operator.reference, case, torch.bfloat16)
