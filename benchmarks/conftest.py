"""What the entry points share: the options of a small measurement, and why they cannot run here."""

import argparse
import importlib.util

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.bench import BASELINE
from mova_engine.bench.candidates import make_sides

if importlib.util.find_spec("pytest_benchmark") is None:

    @pytest.fixture
    def benchmark():
        """Stands where pytest-benchmark's fixture would, and says that it is missing."""
        pytest.skip("pytest-benchmark is not installed: pip install -r requirements/dev.txt")


def pytest_addoption(parser):
    parser.addoption("--bench-device", default="cpu", help="what is measured: cpu, or a kind of accelerator")
    parser.addoption("--card", default="h100", help="the suite whose steps test_card_steps.py takes")


@pytest.fixture(scope="session")
def backend(request):
    """The device that is measured."""
    return get_backend(request.config.getoption("--bench-device"))


@pytest.fixture(scope="session", params=["float32", "bfloat16"])
def dtype(request):
    return getattr(torch, request.param)


@pytest.fixture(scope="session")
def sides(backend, dtype):
    """The engine and the baseline, by name."""
    options = argparse.Namespace(baseline=BASELINE, baseline_dtype=None, one_process=True, compile=False)
    return {side.name: side for side in make_sides(options, backend, dtype)}
