"""`--deterministic`: what is chosen, what is asked of the vendors' backwards, what is refused. No GPU."""

import inspect
import sys

import pytest
import torch
from ops import vendors

from mova_engine.backend import describe_backend
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, bind, flash_impl
from mova_engine.ops.determinism import deterministic_operators
from mova_engine.ops.machine import assumed_machine

ATTENTION = ("attention", "attention_lse", "attention_backward")


@pytest.fixture
def strict():
    """As a deterministic run has torch; what tests have only warns."""
    torch.use_deterministic_algorithms(True)


def asked_of(version, monkeypatch) -> list[object]:
    """What the stand-in of flash-attn is given as `deterministic` by a forward and a backward."""
    modules, asked = vendors.importable(vendors.FLASH[version]()), []
    for name, module in modules.items():
        for attribute in ("flash_attn_func", "_flash_attn_backward", "_flash_attn_bwd"):
            if hasattr(module, attribute):
                right = getattr(module, attribute)

                def note(*args, right=right, **named):
                    asked.append(named.get("deterministic", False))
                    return right(*args, **named)

                note.__signature__ = inspect.signature(right)
                monkeypatch.setattr(module, attribute, note)
        monkeypatch.setitem(sys.modules, name, module)
    q = torch.randn(1, 8, 2, 16, dtype=torch.bfloat16)
    getattr(flash_impl, f"flash{version}")(q, q, q)
    out, lse = getattr(flash_impl, f"flash{version}_lse")(q, q, q)
    getattr(flash_impl, f"flash{version}_backward")(q, q, q, q, out, lse)
    # The log-sum-exp is of a forward, which has no order to choose.
    return [asked[0], asked[-1]]


@pytest.mark.parametrize("version", [2, 3])
def test_flash_attn_is_asked_for_its_deterministic_backward(version, monkeypatch, strict):
    assert asked_of(version, monkeypatch) == [True, True]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_without_the_mode_nothing_is_asked(version, monkeypatch):
    assert asked_of(version, monkeypatch) == [False, False]


def test_a_flash_attn_without_one_is_refused_by_name(monkeypatch, strict):
    with pytest.raises(MovaError, match=r"flash_attn\.cute\.interface has no deterministic backward: name another"):
        asked_of(4, monkeypatch)


@pytest.mark.parametrize("generation", ["sm80", "sm89", "sm90", "sm100", "sm120"])
@pytest.mark.parametrize("packages", [(), ("flash-attn-2",), ("flash-attn-3",)])
def test_no_choice_of_a_deterministic_run_adds_in_any_order(generation, packages):
    machine = assumed_machine("cuda", generation, packages)
    table = bind(assume=machine, operators=deterministic_operators(OPERATORS, {}), dtypes=(torch.bfloat16,))
    for choice in table.choices:
        of = {each.name: each for each in OPERATORS[choice.operator].implementations}
        assert choice.implementation not in of or of[choice.implementation].deterministic, choice
    assert {choice.operator for choice in table.choices} >= set(ATTENTION)


@pytest.mark.parametrize(("operator", "name"), zip(ATTENTION, ("sdpa-cudnn", "cudnn", "cudnn"), strict=True))
def test_what_is_not_deterministic_is_refused_where_it_is_named(operator, name):
    with pytest.raises(
        MovaError, match=f"--deterministic: ops.{operator} {name} adds gradients in an order .* one of "
    ):
        deterministic_operators(OPERATORS, {operator: name})
    deterministic_operators(OPERATORS, {operator: "reference"})


def test_a_workspace_with_which_cublas_may_choose_is_refused(monkeypatch):
    backend = describe_backend("cuda")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(MovaError, match="CUBLAS_WORKSPACE_CONFIG is :0:0, and cuBLAS is deterministic with :4096:8 or"):
        backend.require_determinism()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    backend.require_determinism()
    assert torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
