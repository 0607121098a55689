"""A card's suite as a user starts it, where torch, triton, numpy and safetensors are all that is installed.

Everything else is hidden from the command and from the processes that it starts. The whole suite runs on the CPU at
small sizes, is killed in the middle, and goes on; units that break, crash or hang take nothing else with them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from test_imports import HIDE, MEASURING, not_required_by

from mova_engine.bench.card.card_suites import get_suite
from mova_engine.bench.card.part_files import PartFiles
from source_tree import ROOT

pytestmark = [pytest.mark.dry, pytest.mark.timeout(1800)]
HERE = Path(__file__).parent
MARK = "rehearsed on cpu: not a measurement"


def _hidden(folder: Path, more: str = "") -> dict[str, str]:
    """The environment of a process that finds four packages and theirs; `more` runs at its start too."""
    folder.mkdir()
    code = f"absent = {sorted(not_required_by(*MEASURING))!r}\n{HIDE}\n{more}"
    (folder / "sitecustomize.py").write_text(code)
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}


def _command(out: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "mova_engine.bench", "--suite", "h100", "--out", str(out), *words]


def _processes(out: Path) -> list[int]:
    """The processes of this suite's worker, which know the folder by their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"MOVA_TILES={out}/chosen".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def test_the_whole_suite_is_killed_in_the_middle_and_goes_on(tmp_path):
    environment, out = _hidden(tmp_path / "hidden"), tmp_path / "out"
    units = get_suite("h100").units()
    files = PartFiles(out, "h100", MARK)
    with subprocess.Popen(_command(out, "--minutes", "60"), env=environment, cwd=tmp_path) as first:
        while not (out / "operators.json").exists():
            assert first.poll() is None, "it ended before it came to the operators"
            time.sleep(0.2)
        first.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while _processes(out):
        assert time.monotonic() < until, "the process that measures outlives the one that asked"
        time.sleep(0.2)
    before = {unit: files.units(unit.part).get(unit.name) for unit in units}
    done = [unit for unit in units if before[unit] is not None]
    assert 0 < len(done) < len(units)

    second = subprocess.run(
        _command(out, "--minutes", "60"), env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    after = {unit: files.units(unit.part)[unit.name] for unit in units}
    assert {unit: after[unit] for unit in done} == {unit: before[unit] for unit in done}, "what was done is done again"
    for unit, entry in after.items():
        assert "failed" not in entry and ("left_out" in entry or entry["rows"]), unit
        assert all(row["mark"] == MARK for row in entry.get("rows", []))
    for part, figures in {"stack": (), "denoise": (), "lora": (), "streaming": ("copies",)}.items():
        for entry in files.units(part).values():
            (row,) = entry["rows"]
            assert {"median_s", "interval_s", "mfu", "hfu", "peak_bytes", "predicted", "checks", *figures} <= row.keys()
    text = (out / "report.md").read_text()
    assert MARK in text and "not done yet" not in text and (out / "report.html").is_file()

    third = subprocess.run(_command(out), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert third.returncode == 0 and f"{len(units)} of {len(units)} units are done" in third.stdout


def test_what_goes_wrong_is_a_row_with_its_reason_and_the_rest_goes_on(tmp_path):
    more = f"""
sys.path.insert(0, {str(HERE)!r})
from mova_engine.bench.card import card_suites
import odd_units
card_suites.PARTS = odd_units.ODD_PARTS
card_suites.LEAST_LIMIT = 0.3
"""
    environment, out = _hidden(tmp_path / "hidden", more), tmp_path / "out"
    done = subprocess.run(_command(out), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((out / "doctor.json").read_text())["units"]
    reasons = {name: entry.get("failed") or entry.get("left_out") for name, entry in found.items()}
    assert reasons == {
        "fine": None,
        "breaks": "RuntimeError: the device is lost at <address>",
        "refuses": "it cannot be done: do that",
        "left out": "nothing to measure",
        "wrong": "wrong results: see its rows",
        "crashes": f"its process ended with status {-signal.SIGABRT} (-9: out of memory, most likely)",
        "hangs": "not done within 3 s",
        "after": None,
    }
    process = {name: found[name]["rows"][0]["process"] for name in ("fine", "wrong", "after")}
    assert len(set(process.values())) == 3, "what broke a process was measured in again"
    report = (out / "report.md").read_text()
    assert "| doctor | breaks | failed | RuntimeError: the device is lost at <address> |" in report
