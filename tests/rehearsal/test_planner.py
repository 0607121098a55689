"""The cost model's memory against rehearsals at full size."""

import json
import subprocess
import sys

import pytest

from mova_engine.rehearsal.result import Rehearsal

# At full size, which takes minutes; by default the first, beside test_dry_run.py's on a fake NPU.
RUNS = {
    "phase 3, full": "--device cuda --recipe joint-phase3 --world-size 1024",
    "phase 3, selective": "--device cuda --recipe joint-phase3 --world-size 1024 --memory.checkpointing selective",
    "phase 1": "--device cuda --recipe joint-phase1 --world-size 64 --global-batch-size 8",
    "phase 2, none": "--device cuda --recipe joint-phase2 --world-size 64 --global-batch-size 8 "
    "--memory.checkpointing none",
    "adapters on one": "--device cuda --recipe lora --global-batch-size 1",
    "adapters, nothing made again": "--device npu --recipe lora --global-batch-size 1 --memory.checkpointing none",
    "sound alone": "--device cuda --recipe audio-pretrain --world-size 16",
}


@pytest.mark.dry
@pytest.mark.parametrize(
    "run",
    [pytest.param(run, id=name, marks=[pytest.mark.slow] * bool(i)) for i, (name, run) in enumerate(RUNS.items())],
)
def test_what_is_planned_is_what_is_counted(run):
    """Within 5%."""
    command = [sys.executable, "-m", "mova_engine.train", *run.split(), "--dry-run", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = Rehearsal.from_dict(json.loads(done.stdout))
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
