"""The example of library use: a trainer outside the engine, with an operator implementation of its own."""

import ast
import importlib.util
import math
import re
import runpy
import sys

import pytest
import torch

import mova_engine
from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import verify
from source_tree import ROOT, tree

EXAMPLE = ROOT / "examples" / "downstream_trainer.py"
OPERATOR = OPERATORS["gate_residual_norm_modulate"]


@pytest.fixture
def example(monkeypatch):
    spec = importlib.util.spec_from_file_location("downstream_trainer", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    # The operator table imports implementations by module name.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_it_learns(example):
    losses = example.train(steps=16, batch=4, clips=8)
    assert all(map(math.isfinite, losses))
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_it_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--steps", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert re.fullmatch(r"loss [\d.]+ in the first ten steps, [\d.]+ in the last ten\n", capsys.readouterr().out)


def test_its_operator_is_the_one_that_runs(example, monkeypatch):
    calls = []
    own = example.gate_norm_addcmul
    monkeypatch.setattr(example, "gate_norm_addcmul", lambda *a, **k: calls.append(1) or own(*a, **k))
    example.train(steps=1, batch=2, clips=2)
    assert calls


@pytest.mark.parametrize("case", [c for c in cases_of(OPERATOR) if c.size == "test"], ids=lambda case: case.name)
def test_its_operator_is_right(example, case):
    findings = verify(OPERATOR, example.gate_norm_addcmul, case, torch.device("cpu"), torch.float32)
    assert not [finding for finding in findings if not finding.passed]


def test_it_needs_the_public_names_only():
    source = tree(EXAMPLE)
    imported = {alias.name for node in ast.walk(source) if isinstance(node, ast.Import) for alias in node.names}
    assert not any(isinstance(node, ast.ImportFrom) and "mova" in node.module for node in ast.walk(source))
    assert {name for name in imported if name.startswith("mova")} == {"mova_engine"}
    used = {
        node.attr for node in ast.walk(source) if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "me"
    }
    assert used <= set(mova_engine.__all__)
    assert not used & {"Trainer", "Pipeline"}, "it stands on its own loop"
