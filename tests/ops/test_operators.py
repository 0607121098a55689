"""Every implementation of every operator that this machine can run: values and gradients, against float64."""

from dataclasses import replace

import pytest
import torch

from mova_engine.ops import OPERATORS, bind_operator
from mova_engine.ops.verify import verify

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RUNS = [
    pytest.param(operator, implementation, case, dtype, id=f"{operator.name}-{implementation}-{case.name}-{dtype}")
    for operator in OPERATORS.values()
    for implementation in operator.choices()
    for case in operator.cases
    if case.size == "test"
    for dtype in DTYPES
]


@pytest.mark.parametrize(("operator", "implementation", "case", "dtype"), RUNS)
def test_implementation_against_float64(backend, operator, implementation, case, dtype):
    for entry in operator.implementations:
        reason = entry.refusal(backend, training=entry.differentiable) if entry.name == implementation else None
        if reason:
            pytest.skip(f"{implementation} on {backend.name}: {reason}")
        if entry.name == implementation and DTYPES[dtype] not in entry.torch_dtypes():
            pytest.skip(f"{implementation} is not made for {dtype}")
        if entry.name == implementation and not entry.differentiable:
            operator = replace(operator, differentiable=())
    function, choice = bind_operator(operator, backend, implementation, training=False)
    assert choice.implementation == implementation
    findings = verify(operator, function, case, backend.device(), DTYPES[dtype])
    assert findings
    missed = [
        f"{f.tensor}: rms {f.error:.3g} of {f.allowed:.3g}, worst {f.worst:.3g} of {f.worst_allowed:.3g} {f.note}"
        for f in findings
        if not f.passed
    ]
    assert not missed, "; ".join(missed)
