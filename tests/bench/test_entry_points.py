"""`pytest benchmarks/` runs: every entry point is found, and operators are measured."""

import subprocess
import sys

import pytest

from source_tree import ROOT


def _pytest(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.long
def test_every_entry_point_is_found():
    done = _pytest("--collect-only")
    assert done.returncode == 0, done.stdout
    assert "test_operators.py::test_operator[" in done.stdout and "test_jobs.py::" in done.stdout


@pytest.mark.slow
def test_operators_are_measured():
    done = _pytest("-k", "test_operator and reference and float32 and gate_residual")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
