"""Parity without recorded numbers: it passes here, and sees a wrong value, a wrong gradient and a NaN."""

import pytest
import torch

from mova_engine.ops import bind
from mova_engine.parity import builtin

pytestmark = pytest.mark.usefixtures("reference_towers_once", "few_operators")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
def test_this_device_agrees_with_the_reference(backend, dtype):
    with backend.full_precision():
        rows = [*builtin.operator_rows(backend, dtype), *builtin.tower_rows(backend, bind(backend), dtype)]
    assert all(row.passed for row in rows), [row for row in rows if not row.passed]
    assert {row.tensor for row in rows} >= {"out.video", "out.audio", "grad.video_dit", "grad.dual_tower_bridge"}


class _WrongGradient(torch.autograd.Function):
    """The identity, with a gradient 1% too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * 1.01


@pytest.mark.parametrize(
    "spoil, missed",
    [
        (lambda x: x * 1.001, "out.video"),
        (_WrongGradient.apply, "grad.video_dit"),
        (lambda x: torch.where(x == x.max(), torch.nan, x), "out.audio"),
    ],
    ids=["value", "gradient", "nan"],
)
def test_a_wrong_operator_is_seen_through_the_towers(backend, spoil, missed):
    table = bind(backend)
    wrong = table.replaced(attention=lambda q, k, v: spoil(table.attention(q, k, v)))
    rows = builtin.tower_rows(backend, wrong, torch.float32)
    assert missed in {row.tensor for row in rows if not row.passed}


def test_a_wrong_operator_is_seen_by_itself(backend, monkeypatch):
    real = builtin.bind_operator

    def bind_operator(operator, backend):
        function, choice = real(operator, backend)
        if operator.name == "adamw":
            return lambda params, **options: function(params, **options | {"eps": 1e-3}), choice
        return function, choice

    monkeypatch.setattr(builtin, "bind_operator", bind_operator)
    missed = {row.case for row in builtin.operator_rows(backend, torch.float32) if not row.passed}
    assert missed == {"adamw"}
