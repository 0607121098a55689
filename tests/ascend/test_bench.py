"""`python -m mova_engine.bench --suite 910a2` rehearses itself on the emulator, and says that it measured nothing."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.npu
MARK = "rehearsed on the emulated Ascend 910B2: not a measurement"
QUICK = ["block", "denoise"]


@pytest.mark.parametrize(
    "parts",
    [QUICK, pytest.param([*QUICK, "bridge", "stack", "lora", "streaming"], marks=pytest.mark.slow)],
    ids=["two", "steps"],
)
def test_the_suite_rehearses_on_the_emulator(npu, tmp_path, parts):
    if not npu.emulated():
        pytest.skip("a real NPU would be measured, for many minutes")
    command = [sys.executable, "-m", "mova_engine.bench", "--suite", "910a2", "--device", "npu", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--only", *parts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for part in parts:
        content = json.loads((tmp_path / f"{part}.json").read_text())
        assert content["mark"] == MARK and content["circumstances"]["device_name"] == "emulated Ascend 910B2"
        for row in (row for entry in content["units"].values() for row in entry["rows"]):
            assert row["mark"] == MARK and row["mfu"] is None and row["predicted"]["seconds"] > 0
    assert MARK in (tmp_path / "report.md").read_text()
