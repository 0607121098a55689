"""Triton kernels without a GPU: in Triton's interpreter against the references, and compiled for GPUs not there.

What only a device can show (bfloat16 values, time) the operator suite shows there: `pytest tests/ops --device cuda`.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from triton_kernels.interpreted import checks, is_a_repetition

from mova_engine.ops import OPERATORS
from mova_engine.ops.testing.verify import DRAWS
from source_tree import ROOT, relative

PROGRAM = Path(__file__).with_name("interpreted.py")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def _run(*command: str, **environment: str) -> subprocess.CompletedProcess:
    child = [sys.executable, *command]
    return subprocess.run(child, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


# (tiles, draws of each case). By default one draw, and no case of which another shows the same.
RUNS = [("nvidia", 1), *(pytest.param((tiles, DRAWS), marks=pytest.mark.slow) for tiles in ("nvidia", "ascend"))]


@pytest.fixture(scope="module", params=RUNS, ids=lambda run: "{}-{}".format(*run))
def interpreted(request) -> dict[str, str]:
    """What each check found with a target's tiles, from one process: Triton decides at import whether it interprets."""
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    wanted = [name for name in checks() if request.config.getoption("--slow") or not is_a_repetition(name)]
    child = _run(str(PROGRAM), *map(str, request.param), *wanted, TRITON_INTERPRET="1", PYTHONPATH=path)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@needs_triton
@pytest.mark.kernels
@pytest.mark.parametrize(
    "check", [pytest.param(name, marks=[pytest.mark.slow] * is_a_repetition(name)) for name in checks()]
)
def test_under_the_interpreter(interpreted, check):
    assert not interpreted[check], interpreted[check]


@needs_triton
@pytest.mark.kernels
@pytest.mark.parametrize("capability", ["90", pytest.param("80 100", marks=pytest.mark.slow)])
def test_every_kernel_compiles_without_spilling(capability):
    """At MOVA's widths, to PTX and cubin; the command's report is in the output of a failure."""
    child = _run("-m", "mova_kernels.check_triton", "--capability", *capability.split(), TRITON_INTERPRET="0")
    assert child.returncode == 0, child.stdout + child.stderr[-3000:]
    for name in _operators_with_triton():
        assert f"{name} forward" in child.stdout
        assert (f"{name} backward" in child.stdout) == bool(OPERATORS[name].differentiable)


@needs_triton
@pytest.mark.kernels
def test_a_spill_is_reported(monkeypatch, capsys):
    """A tile far too large for the registers: the report must say so, and the exit status too."""
    from mova_kernels import check_triton, triton_tiles, triton_variants

    tiles, calls = triton_tiles.TILES["nvidia"], triton_variants.calls
    monkeypatch.setitem(tiles, "", tiles[""]._replace(rows=16, cols=1024))
    monkeypatch.setattr(check_triton, "WIDTHS", (5120,))
    monkeypatch.setattr(
        triton_variants, "calls", lambda d, t: [call for call in calls(d, t) if call[0] == "layer_norm"]
    )
    assert check_triton.main(["--capability", "90"]) == 1
    assert "spill" in capsys.readouterr().out.splitlines()[-1]


def _operators_with_triton() -> list[str]:
    """Those that are a kernel of their own: a linear layer with GELU borrows that of bias and GELU."""
    triton = [name for name, operator in OPERATORS.items() if "triton" in operator.choices()]
    return [name for name in triton if (ROOT / "kernels" / name / "triton.py").exists()]


def test_the_table_names_every_kernel_file():
    targets = {entry.target.split(":")[0] for op in OPERATORS.values() for entry in op.implementations}
    files = [path for name in OPERATORS for path in (ROOT / "kernels" / name).glob("*.py") if path.stem != "__init__"]
    assert len(files) >= 8
    modules = {relative(path): ".".join(("mova_kernels", path.parent.name, path.stem)) for path in files}
    assert [path for path, module in modules.items() if module not in targets] == []


def test_every_kernel_folder_is_an_operator():
    folders = {path.parent.name for path in (ROOT / "kernels").glob("*/triton.py")}
    assert folders <= set(OPERATORS)
