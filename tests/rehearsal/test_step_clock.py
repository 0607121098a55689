"""Timed rehearsals: what the planner says of exposed communication is what the engine's own streams make of it."""

import re
import subprocess
import sys

import pytest

from mova_engine.config.recipes import TRAIN, load_config
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.step_time import predict
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.rehearsal.weights import with_layers
from mova_engine.train.assembly import mesh_of
from mova_engine.train.dry_run import planned
from mova_engine.train.model_setup import largest_clip, model_config

pytestmark = pytest.mark.dry
TRAINING = "mova_engine.train.dry_run:in_this_process"
# Ulysses and FSDP in one node; Ulysses, a ring and FSDP over a network. Three layers, each with a bridge.
RUNS = {
    "lora": "--recipe lora --world-size 8 --parallel.context-parallel 4 --parallel.shard --global-batch-size 2",
    "phase3": "--recipe joint-phase3 --world-size 1024",
    "lora, weights ahead": "--recipe lora --world-size 8 --parallel.context-parallel 4 --parallel.shard "
    "--global-batch-size 2 --memory.prefetch weights",
    "phase3, by unit": "--recipe joint-phase3 --world-size 1024 --memory.prefetch unit",
    "phase3, gradients too": "--recipe joint-phase3 --world-size 1024 --memory.prefetch all",
}
LAYERS = 3


@pytest.mark.parametrize("name", RUNS)
def test_exposed_communication_is_planned_as_it_is_simulated(name):
    words = f"{RUNS[name]} --device npu --clock 910a2 --dry-run"
    config, options = TRAIN.parse_both(words.split())
    found = Rehearsal.from_dict(rehearse(TRAINING, config, "npu", options, LAYERS)).timeline
    assert found is not None
    sizes = with_layers(largest_clip(config, model_config(config)), LAYERS)
    plan = predict(planned(config, sizes, mesh_of(config, options.world_size)), calibrated("910a2"))
    computing = sum(plan.parts[part] for part in ("GEMM", "attention", "memory-bound passes"))
    # FSDP's small units are not planned one by one, nor what the embeddings and the packing of exchanges cost.
    assert plan.parts["communication"] == pytest.approx(found.waiting, rel=0.25), str(found)
    assert computing == pytest.approx(found.computing, rel=0.15), str(found)
    exchanged = sum(seconds for kind, seconds in found.exposed.items() if kind.startswith("all_to_all"))
    alone = sum(seconds for kind, seconds in found.collectives.items() if kind.startswith("all_to_all"))
    assert 0 < exchanged < 0.35 * alone, str(found)


@pytest.mark.parametrize(
    "words, said",
    [
        ("--device cuda", r"--clock 910a2: that is a device of kind npu: say --device so, too"),
        (
            "--device npu --memory.inputs host",
            r"copies to and from the host are not timed: set memory.inputs to device",
        ),
    ],
)
def test_what_the_clock_does_not_time_is_refused(words, said):
    command = f"--recipe joint-phase3 --world-size 1024 --dry-run --clock 910a2 {words}".split()
    done = subprocess.run([sys.executable, "-m", "mova_engine.train", *command], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and re.search(said, lines[0]), done.stderr[-2000:]


def test_without_a_clock_nothing_is_timed():
    options = RehearsalOptions(dry_run=True)
    assert Rehearsal.from_dict(rehearse(TRAINING, load_config("nano"), "cpu", options, 1)).timeline is None
