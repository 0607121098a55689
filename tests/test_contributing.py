"""docs/contributing.md: each diff applies to a copy of the engine, is short, and does there what the page says."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mova_engine.data.media.write import write_mp4
from source_tree import ROOT

PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
DIFFS = dict(re.findall(r"^## An? ([\w ]+)\n.*?```diff\n(.*?)```", PAGE, re.M | re.S))


@pytest.fixture
def changed(request, tmp_path):
    """A copy of the engine and of its operators' tests with the named diff of the page applied."""
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "mova_engine", copy / "mova_engine", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "ops", copy / "tests" / "ops", ignore=ignored)
    for name in ("tests/conftest.py", "tests/source_tree.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    apply = ["git", "apply", "--unidiff-zero", "-"]
    done = subprocess.run(apply, cwd=copy, input=DIFFS[request.param], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy


def run(copy, *words) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    child = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout[-2000:] + child.stderr[-2000:]
    return child.stdout


def test_the_diffs_are_short():
    assert set(DIFFS) == {"score", "operator implementation", "device", "adapter dialect"}
    assert all(len(diff.splitlines()) < 60 for diff in DIFFS.values())


@pytest.mark.parametrize("name", DIFFS)
def test_the_diffs_fit_the_engine(name):
    check = ["git", "apply", "--check", "--unidiff-zero", "-"]
    done = subprocess.run(check, cwd=ROOT, input=DIFFS[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("changed", ["score"], indirect=True)
def test_a_score(changed, tmp_path):
    fps, rate, frames = 24, 48000, 49
    sound = np.zeros(frames * rate // fps, np.float32)
    sound[: len(sound) // 2] = 0.3 * np.sin(np.arange(len(sound) // 2) * 0.05)
    picture = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8)
    write_mp4(tmp_path / "half.mp4", np.repeat(picture, frames, 0), sound, fps=fps, sample_rate=rate)
    out = run(changed, "-m", "mova_engine.cli", "eval", "scores", str(tmp_path / "half.mp4"), "--score", "quiet")
    assert float(re.search(r"quiet ([\d.]+)", out)[1]) == pytest.approx(0.5, abs=0.1)


@pytest.mark.long
@pytest.mark.parametrize("changed", ["operator implementation"], indirect=True)
def test_an_operator_implementation(changed):
    out = run(changed, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops/test_operators.py", "-k", "addcmul")
    assert int(re.search(r"(\d+) passed", out)[1]) >= 8, out


@pytest.mark.long
@pytest.mark.parametrize("changed", ["device"], indirect=True)
def test_a_device(changed):
    code = "from mova_engine.backend import NAMES, describe_backend as d; print(NAMES[-1], d('xpu').unavailable())"
    assert run(changed, "-c", code).startswith("xpu torch sees no Intel GPU")


@pytest.mark.long
@pytest.mark.parametrize("changed", ["adapter dialect"], indirect=True)
def test_an_adapter_dialect(changed, tmp_path, repo_root):
    adapter = repo_root / "tests" / "data" / "golden" / "case9_lora_weights.safetensors"
    there, back = str(tmp_path / "there"), str(tmp_path / "back.safetensors")
    commands = (
        ("convert", str(adapter), "--alpha", "8", "--to", "dotted", "--out", there),
        ("convert", there, "--to", "mova-engine", "--out", back),
        ("inspect", str(adapter), "--alpha", "8"),
        ("inspect", back, "--alpha", "4"),
    )
    # In one process: each would import torch.
    code = f"from mova_engine.cli import main\nfor words in {commands}: assert not main(['lora', *words]); print('\\f')"
    said, _, before, after, _ = run(changed, "-c", code).split("\f\n")
    assert "dotted has no alpha: B holds alpha / rank of 38 layers" in said
    norms = [
        re.findall(r"\((?:high|low|audio|bridge)\).*norm of the update ([\d.]+)", said) for said in (before, after)
    ]
    assert norms[0] == norms[1] and len(norms[0]) == 4
