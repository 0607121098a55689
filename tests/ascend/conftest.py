"""Fixtures of the tests that run on an NPU: a real one, or the emulated one of `make test-npu`."""

import collections
import sys
from collections.abc import Iterator

import pytest


def pytest_sessionfinish():
    """The runner's processes may be ended before Python's own end: counts of operators are left here."""
    start = sys.modules.get("ascend.emulator.start")
    if start is not None:
        start.leave_counts()


@pytest.fixture(scope="session")
def npu():
    """The NPU backend, whatever --device says."""
    from mova_engine.backend import get_backend

    return get_backend("npu")


@pytest.fixture
def executed() -> Iterator[collections.Counter]:
    """The emulator's counts of operators, emptied for one test; skips on real hardware, which keeps none."""
    kernel = sys.modules.get("ascend.emulator.kernel")
    if kernel is None:
        pytest.skip("only the emulator counts operators")
    before = kernel.executed.copy()
    kernel.executed.clear()
    yield kernel.executed
    kernel.executed.update(before)
