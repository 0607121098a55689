"""Every implementation of every operator that this machine can run: values and gradients, against float64."""

import dataclasses
import functools
import itertools

import pytest
import torch

from mova_engine.backend import describe_backend
from mova_engine.ops import OPERATORS, bind_operator, refusal
from mova_engine.ops.registry import ThisMachine
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import judge, results, trials

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Compiling takes seconds for each: one run belongs to the long tests, one of each operator to the slow ones.
COMPILE = "compile"
COMPILED = ("gate_residual", "float32")


def _marks(operator, implementation, dtype):
    # float16 is judged in full by the slow ones: no model is trained in it.
    if implementation == COMPILE:
        return [pytest.mark.long if (operator.name, dtype) == COMPILED else pytest.mark.slow]
    return [pytest.mark.slow] if dtype == "float16" else []


def _runs(machine):
    """(operator, implementation, case, dtype): of an implementation that the machine has not, one case says why; the
    others, hundreds, would say the same. Of dtypes that an implementation is not made for there is nothing to judge.
    """
    for operator in OPERATORS.values():
        cases = [case for case in cases_of(operator) if case.size == "test"]
        for case, dtype, implementation in itertools.product(cases, DTYPES, operator.choices()):
            entries = [entry for entry in operator.implementations if entry.name == implementation]
            made_for = not entries or all(dtype in entry.dtypes for entry in entries)
            absent = any(entry.refusal(machine, training=False) for entry in entries)
            once = case == cases[0] and (dtype == entries[0].dtypes[0] if absent else True)
            if made_for and (once if absent or implementation == COMPILE else True):
                name = f"{operator.name}-{implementation}-{case.name}-{dtype}"
                marks = _marks(operator, implementation, dtype)
                yield pytest.param(operator, implementation, case, dtype, id=name, marks=marks)


def pytest_generate_tests(metafunc):
    machine = ThisMachine(describe_backend(metafunc.config.getoption("--device")))
    metafunc.parametrize(("operator", "implementation", "case", "dtype"), list(_runs(machine)))


@functools.lru_cache(maxsize=1)
def _trials(name, differentiable, case, device, dtype):
    """What the implementations of an operator are compared with, once for all: they come one after the other."""
    operator = dataclasses.replace(OPERATORS[name], differentiable=differentiable)
    return list(trials(operator, case, device, dtype))


def test_implementation_against_float64(backend, operator, implementation, case, dtype):
    for entry in operator.implementations:
        if entry.name != implementation:
            continue
        reason = refusal(operator, entry, backend, entry.differentiable, (DTYPES[dtype],))
        if reason:
            pytest.skip(f"{implementation} on {backend.name}: {reason}")
    if implementation == COMPILE:
        torch.compiler.reset()
    function, choice = bind_operator(operator, backend, implementation, False, (DTYPES[dtype],))
    assert choice.implementation == implementation
    gradients = all(entry.differentiable for entry in operator.implementations if entry.name == implementation)
    differentiable = operator.differentiable if gradients else ()
    made = _trials(operator.name, differentiable, case, backend.device(), DTYPES[dtype])
    operator = dataclasses.replace(operator, differentiable=differentiable)
    findings = judge(operator, ((trial, results(operator, function, trial)) for trial in made))
    assert findings
    missed = [str(f) for f in findings if not f.passed]
    assert not missed, "; ".join(missed)
