"""Passes over memory of the Triton kernels with a GPU's tiles, counted in Triton's interpreter on a CPU."""

import pytest
from triton_kernels.kernel_passes import ACCESSES, count_passes, on_rows
from triton_kernels.test_triton import needs_triton

from mova_engine.ops import OPERATORS


@needs_triton
@pytest.mark.kernels
def test_passes_are_those_that_are_declared_and_known():
    """Each input is read and each output written once; what of it is read again, from a cache, is known too."""
    found = count_passes("cpu", "nvidia")
    assert {case: passes.operands for case, passes in found.items()} == {
        (name, gate): OPERATORS[name].passes("triton").of(gate) for name, _, gate in on_rows()
    }
    assert {case: passes.accesses for case, passes in found.items()} == ACCESSES
