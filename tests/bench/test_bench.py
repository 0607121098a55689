"""The measuring commands: what they write, and that a wrong operator gets no figure."""

import json
import sys
import types

import pytest
import torch

from mova_engine.bench import operators
from mova_engine.bench.__main__ import main
from mova_engine.errors import MovaError
from mova_engine.ops import OPERATORS, Implementation
from mova_kernels.cpu import unavailable


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(operators._LARGEST, "cpu", 1 << 20)


def halved(x, weight, *, eps):
    return OPERATORS["rms_norm"].reference(x, weight, eps=eps) / 2


def test_operators_are_measured_and_written(tmp_path, capsys):
    path = tmp_path / "result.json"
    assert main(["operators", "--op", "rms_norm", "--seconds", "0.01", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert result["kind"] == "operators"
    assert result["circumstances"]["torch"] == torch.__version__
    assert {"device", "device_name", "commit", "date", "load_average"} <= result["circumstances"].keys()
    rows = {row["implementation"]: row for row in result["rows"]}
    assert rows.keys() == {"reference", "torch"} | ({"native"} if unavailable() is None else set())
    assert rows["reference"]["forward_speedup"] == 1
    assert all(row["forward_backward_s"] > row["forward_s"] > 0 for row in rows.values())
    assert "rms_norm" in capsys.readouterr().out


def test_a_wrong_implementation_gets_no_figure(monkeypatch, tmp_path):
    entry = Implementation("halved", "tests_bench_halved:halved")
    monkeypatch.setitem(OPERATORS, "rms_norm", OPERATORS["rms_norm"].with_implementation(entry))
    monkeypatch.setitem(sys.modules, "tests_bench_halved", types.SimpleNamespace(halved=halved))
    path = tmp_path / "result.json"
    with pytest.raises(MovaError, match="rms_norm 'halved' is wrong on 1280x768 .*no speed is reported"):
        main(["operators", "--op", "rms_norm", "--seconds", "0.01", "--json", str(path)])
    assert not path.exists()


def test_a_training_step_is_measured_with_its_breakdown(tmp_path):
    path = tmp_path / "step.json"
    assert main(["step", "--model", "nano", "--batch", "2", "--seconds", "0.1", "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["fastest_s"] <= row["step_s"] <= row["slowest_s"]
    assert row["flop_per_s"] == pytest.approx(row["model_tflop"] * 1e12 / row["step_s"])
    assert row["mfu"] is None
    assert sum(row["breakdown"].values()) == pytest.approx(1.0)
    assert {"matrix products", "attention"} <= row["breakdown"].keys()
    assert row["operators"].keys() == OPERATORS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["operators", "--op", "rms_nrom"], "unknown operator 'rms_nrom'. Did you mean 'rms_norm'"),
        (["step", "--model", "nanoo"], "unknown model 'nanoo'. Did you mean 'nano'"),
        (["step", "--dtype", "bfloat15"], "Did you mean 'bfloat16'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(MovaError, match=message):
        main(arguments)


def test_every_measured_case_says_how_large_it_is():
    """A case of size nought would be run on a device that cannot hold it."""
    cases = [case for operator in OPERATORS.values() for case in operator.cases if case.size == "bench"]
    assert cases
    assert all(case.elements > 0 for case in cases)
