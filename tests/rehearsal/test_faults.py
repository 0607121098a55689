"""Runs that cannot work: each rehearsal ends with one line that says why, and status 2."""

import json
import os
import re
import subprocess
import sys

import pytest

from mova_engine.config.command import to_plain
from mova_engine.config.recipes import load_config
from source_tree import ROOT

pytestmark = pytest.mark.dry


def _line(done: subprocess.CompletedProcess) -> str:
    """The one line of a refusal."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return lines[0]


@pytest.mark.parametrize(
    "fault, said",
    [
        ("wrong_device", r"in diffusion/\w+.py, \w+: Expected all tensors .* on the same device.* npu:0 and cpu"),
        ("wrong_dtype", r"FSDP expects uniform original parameter dtype but got .*bfloat16"),
        ("mutating_policy", r"checkpointing cannot keep results of c10d::alltoall_base_: it changes its arguments"),
        ("wrong_group", r"all_to_all in the group ring of 2 ranks receives 8 pieces: it is meant for another group"),
    ],
)
def test_a_fault_of_the_run_is_found(fault, said):
    done = _broken(fault, "joint-phase3", 16)
    assert re.search(said, _line(done)), _line(done)


def _broken(fault: str, recipe: str, world_size: int) -> subprocess.CompletedProcess:
    machine = {"device": "npu", "capability": "910a2", "packages": []}
    job = {"settings": to_plain(load_config(recipe)), "machine": machine, "world_size": world_size, "layers": 1}
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "rehearsal")}
    command = [sys.executable, "-m", "mova_engine.rehearsal", f"broken_runs:{fault}", "npu"]
    return subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, env=environment)


def test_a_step_that_reads_and_sends_values_on_its_way_is_seen_to_wait():
    done = _broken("reading_step", "nano", 1)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("rehearsal: "))
    assert json.loads(line.removeprefix("rehearsal: "))["host_waits"] == {
        "forward and backward: a copy from or to pageable memory": 2,
        "forward and backward: a value is read": 1,
        "update: a value is read": 1,
    }


@pytest.mark.parametrize(
    "words, said",
    [
        ("--clip.height 350", r"clip.height must be a positive multiple of 16, got 350"),
        ("--global-batch-size 63", r"global_batch_size 63 is no multiple of 64"),
        ("--ops.rms_norm compile", r"operator rms_norm: of implementation 'compile' nothing is declared"),
    ],
)
def test_a_fault_of_the_command_is_found(words, said):
    command = f"--recipe joint-phase3 --dry-run --device cpu --world-size 1024 {words}".split()
    done = subprocess.run([sys.executable, "-m", "mova_engine.train", *command], capture_output=True, text=True)
    assert re.search(said, _line(done)), _line(done)
