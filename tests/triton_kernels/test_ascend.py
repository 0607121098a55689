"""The Triton kernels lowered for an Ascend 910B2 that need not be there, by triton-ascend and BiSheng IR.

They live in an environment of their own, which `make check-ascend-kernels` makes; without it these tests skip. What
needs neither runs everywhere.
"""

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from mova_engine.backend import describe_backend
from mova_engine.ops import OPERATORS, resolve
from mova_kernels import check_ascend, triton_variants
from source_tree import ROOT

PYTHON = Path(os.environ.get("ASCEND_VENV") or ROOT / ".venv-ascend").absolute() / "bin" / "python"
needs_lowering = pytest.mark.skipif(
    not PYTHON.exists(), reason="no environment with triton-ascend; `make check-ascend-kernels` makes it"
)
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)
_PASSES = """[ERROR] Cannot find hivmc under $PATH
loc("kernel.mlir":1:1): error: External hivmc run fails, returning module before running external compiler
[ERROR] Failed to run BiShengIR pipeline"""


# The operators whose kernels the table offers to the NPU; a linear layer's GELU is another operator's kernel.
OFFERED = {
    entry.target.split(".")[1]
    for operator in OPERATORS.values()
    for entry in operator.implementations
    if entry.name == "triton" and "npu" in entry.devices
}


def _run(*command: str) -> subprocess.CompletedProcess:
    """Python with triton-ascend, with these kernels."""
    path = str(Path(check_ascend.__file__).absolute().parents[1])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "0"}
    return subprocess.run([PYTHON, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_every_kernel_offered_to_the_npu_is_checked():
    assert len(OFFERED) >= 9
    assert set(triton_variants.operators()) >= OFFERED


def test_the_absence_of_canns_own_step_is_the_pass():
    assert check_ascend.judge(_PASSES, "scf.for").passed


@pytest.mark.parametrize(
    ("message", "linalg", "reason"),
    [
        ("error: ub overflow, requires 9 bits while 1 bits available!\n" + _PASSES, "", "ub overflow"),
        ("[NOTE] Ub overflow detected; retrying compilation.\n" + _PASSES, "", "Ub overflow detected"),
        ("error: failed to legalize operation 'tt.split'", "", "failed to legalize"),
        ("[ERROR] Cannot find hivmc under $PATH", "", "hivmc"),
        ("", "", "no reason"),
        (_PASSES, "tensor.insert {DiscreteMemAccess}", "1 loops over single elements"),
    ],
)
def test_anything_else_fails_with_the_compilers_words(message, linalg, reason):
    verdict = check_ascend.judge(message, linalg)
    assert not verdict.passed and reason in verdict.message


@needs_triton
def test_a_triton_of_another_vendor_is_refused_with_the_remedy():
    (entry,) = (entry for entry in OPERATORS["rms_norm"].implementations if entry.name == "triton")
    reasons = {name: resolve(entry.check)(describe_backend(name)) for name in ("cuda", "npu")}
    ascend = importlib.util.find_spec("triton.backends.ascend") is not None
    assert reasons["npu" if ascend else "cuda"] is None
    assert "install the build of the device's vendor" in reasons["cuda" if ascend else "npu"]


def test_the_command_refuses_without_triton_ascend(capsys):
    if check_ascend.unavailable() is None:
        pytest.skip("triton-ascend is installed here")
    assert check_ascend.main([]) == 2
    assert "make check-ascend-kernels" in capsys.readouterr().err


@needs_lowering
@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("float16", "float32"))]
)
def test_every_kernel_lowers(dtype):
    child = _run("-m", "mova_kernels.check_ascend", "--dtype", dtype)
    assert child.returncode == 0, child.stdout + child.stderr[-3000:]
    for name in OFFERED:
        assert f"{name} forward" in child.stdout
        assert (f"{name} backward" in child.stdout) == bool(OPERATORS[name].differentiable)


_TOO_LARGE = """
import sys
from mova_kernels import check_ascend, triton_tiles

triton_tiles.TILES["ascend"][""] = triton_tiles.TILES["ascend"][""]._replace(rows=64, cols=1024)
sys.exit(check_ascend.main(["--dtype", "bfloat16", "--only", "layer_norm forward"]))
"""

_BY_ELEMENT = """
import torch, triton, triton.language as tl
from mova_kernels import check_ascend, triton_rows

@triton.jit
def thirds(x, out, COLS: tl.constexpr):
    cols = tl.arange(0, COLS)
    tl.store(out + cols, tl.load(x + cols // 3))

check_ascend.prepare()
x = torch.zeros(64)
verdict = check_ascend.lower(triton_rows.Launch(thirds, (x, x), {"COLS": 64}, 1))
print(verdict.message)
raise SystemExit(not verdict.passed)
"""


@needs_lowering
@pytest.mark.parametrize(
    ("program", "reason"), [(_TOO_LARGE, "ub overflow, requires"), (_BY_ELEMENT, "loops over single elements")]
)
def test_what_an_ascend_could_not_run_or_not_well_is_refused(tmp_path, program, reason):
    file = tmp_path / "program.py"
    file.write_text(program)
    child = _run(str(file))
    assert child.returncode == 1 and reason in child.stdout, child.stdout + child.stderr[-3000:]
