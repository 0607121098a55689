"""`pytest benchmarks/`: every implementation of the operators on rows at a bench-mid shape, checked, then timed."""

import pytest
import torch

from mova_engine.bench.operators import candidates, forward_backward
from mova_engine.bench.passes import bytes_moved
from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.cases import cases_of
from mova_engine.ops.testing.verify import SEED

CASE = "1280x768"


def _cases():
    for operator in OPERATORS.values():
        for case in cases_of(operator):
            if case.name == CASE:
                yield pytest.param(operator, case, id=operator.name)


@pytest.mark.parametrize(("operator", "case"), list(_cases()))
@pytest.mark.parametrize("implementation", ["reference", "native"])
def test_operator(benchmark, backend, dtype, operator, case, implementation):
    functions = candidates(operator, case, backend, dtype, {}, compiled=False)
    if implementation not in functions:
        pytest.skip(f"{operator.name} has no '{implementation}' here: mova ops says why")
    inputs = case.make(torch.Generator().manual_seed(SEED), backend.device(), dtype)
    benchmark.extra_info["bytes"] = sum(bytes_moved(operator.name, inputs))
    benchmark.pedantic(forward_backward(operator, functions[implementation], inputs), rounds=20, warmup_rounds=2)
