"""Every implementation of every operator that this machine can run: values and gradients, against float64."""

import dataclasses
import functools

import pytest
import torch

from mova_engine.ops import OPERATORS, bind_operator, refusal, torch_dtypes
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import judge, results, trials

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Compiling takes seconds for each: one run belongs to every test run, one of each operator to the slow ones.
COMPILE = "compile"
FAST = ("gate_residual", "float32")


def _marks(operator, implementation, dtype):
    # float16 is judged in full by the slow ones: no model is trained in it.
    fast = (dtype != "float16" and implementation != COMPILE) or (operator.name, dtype) == FAST
    return [] if fast else [pytest.mark.slow]


RUNS = [
    pytest.param(
        operator,
        implementation,
        case,
        dtype,
        id=f"{operator.name}-{implementation}-{case.name}-{dtype}",
        marks=_marks(operator, implementation, dtype),
    )
    for operator in OPERATORS.values()
    for case in cases_of(operator)
    if case.size == "test"
    for dtype in DTYPES
    for implementation in operator.choices()
    if implementation != COMPILE or case == cases_of(operator)[0]
]


@functools.lru_cache(maxsize=1)
def _trials(name, differentiable, case, device, dtype):
    """What the implementations of an operator are compared with, once for all: they come one after the other."""
    operator = dataclasses.replace(OPERATORS[name], differentiable=differentiable)
    return list(trials(operator, case, device, dtype))


@pytest.mark.parametrize(("operator", "implementation", "case", "dtype"), RUNS)
def test_implementation_against_float64(backend, operator, implementation, case, dtype):
    for entry in operator.implementations:
        if entry.name != implementation:
            continue
        if DTYPES[dtype] not in torch_dtypes(entry):
            pytest.skip(f"{implementation} is not made for {dtype}")
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
