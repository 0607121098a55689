"""Passes over memory that torch_npu's compositions make, counted call by call on the emulated NPU."""

import pytest
from models.passes import operator_passes

from mova_engine.ops import OPERATORS, refusal, resolve

pytestmark = pytest.mark.npu

ENTRIES = {
    name: entry
    for name, operator in OPERATORS.items()
    for entry in operator.implementations
    if entry.name == "npu" and operator.least and not name.startswith("linear")
}


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", ENTRIES)
def test_declared_passes_are_those_that_are_counted(npu, name, gate):
    if not gate and not name.startswith("gate"):
        pytest.skip("has no gate")
    operator = OPERATORS[name]
    counted = operator_passes(operator, resolve(ENTRIES[name].target), npu.device(), gate)
    assert counted == operator.passes("npu").of(gate)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("name", ["norm_modulate", "gate_residual_norm_modulate"])
def test_declared_passes_of_mindie(npu, name, gate):
    operator = OPERATORS[name]
    (entry,) = (entry for entry in operator.implementations if entry.name == "mindie")
    if refusal(operator, entry, npu, training=False) or (not gate and name == "norm_modulate"):
        pytest.skip("mindiesd is not installed, or there is no gate")
    counted = operator_passes(operator, resolve(entry.target), npu.device(), gate, training=False)
    assert counted == operator.passes("mindie").of(gate)
