"""Fixtures of the tests that run on an NPU: a real one, or the emulated one of `make test-npu`."""

import collections
import sys

import pytest


@pytest.fixture(scope="session")
def npu():
    """The NPU backend, whatever --device says."""
    from mova_engine.backend import get_backend

    return get_backend("npu")


@pytest.fixture
def executed() -> collections.Counter:
    """The emulator's counts of operators, emptied; skips on real hardware, which keeps none."""
    kernel = sys.modules.get("ascend.emulator.kernel")
    if kernel is None:
        pytest.skip("only the emulator counts operators")
    kernel.executed.clear()
    return kernel.executed
