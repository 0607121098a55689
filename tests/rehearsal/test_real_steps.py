"""The tracker without data against real steps on the CPU: within 5% of what torch's allocator had handed out."""

import json
import os
import subprocess
import sys

import pytest

from mova_engine.config.command import to_plain
from mova_engine.config.recipes import load_config
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal
from source_tree import ROOT

MIDDLE = {
    "model": {"preset": "bench-mid"},
    "clip": {"frames": 17, "height": 256, "width": 256, "fps": 17.0},
    "diffusion": {"prediction_type": "velocity"},
    "optim": {"ema": 0.0},
    "loader": {"batch": 1},
}


@pytest.mark.dry
@pytest.mark.parametrize(
    "settings, world",
    [
        ({"memory": {"checkpointing": "none"}}, 1),
        # Real steps take as long as they take; by default one process and two, in float32: without instructions for
        # bfloat16 a CPU takes minutes for a step in it.
        pytest.param(
            {"memory": {"checkpointing": "full"}, "dtype": "bfloat16", "loader": {"batch": 2}},
            1,
            marks=pytest.mark.slow,
        ),
        ({"memory": {"checkpointing": "selective"}, "parallel": {"shard": True}}, 2),
        pytest.param(
            {"memory": {"checkpointing": "selective"}, "dtype": "bfloat16", "parallel": {"shard": True}},
            2,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"memory": {"checkpointing": "none"}, "parallel": {"shard": True, "context_parallel": 2}},
            2,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_rehearsals_peak_is_that_of_a_real_step(settings, world):
    config = load_config("nano", **MIDDLE | settings)
    options = RehearsalOptions(dry_run=True, world_size=world)
    fake = Rehearsal.from_dict(rehearse("mova_engine.train.dry_run:in_this_process", config, "cpu", options)).peak
    program = [str(ROOT / "tests" / "rehearsal" / "real_step.py"), json.dumps(to_plain(config))]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, *program], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("real: ")]
    assert lines, done.stderr[-2000:]
    real = json.loads(lines[0].removeprefix("real: "))
    assert fake == pytest.approx(real["allocator"], rel=0.05)
    assert fake == pytest.approx(real["tracker"], rel=0.05)
    if world == 1:
        # It does not see the memory that FSDP2 takes back and gives again.
        assert fake == pytest.approx(real["live"], rel=0.05)
