"""The cost model's memory against rehearsals at full size."""

import json
import subprocess
import sys

import pytest

from mova_engine.config.recipes import TRAIN
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.config.sample import SAMPLE
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal

CHECKPOINTED = ("--memory.checkpointing", "full", "--memory.inputs", "host")

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

# Of three layers, each with a bridge; the second as slow as one at full size.
CHUNKS = [
    ("inference", "npu", "--checkpoint mova-720p --prompt x --sequential-guidance --memory.weights host"),
    pytest.param("train", "cuda", "--recipe lora --memory.weights host", marks=pytest.mark.slow),
]


# What is kept of the video between evaluations: of two of them, of one at a time of two; with streamed layers.
KEPT = [
    ("cuda", "--cache 1.6"),
    pytest.param("cuda", "--video x.mp4 --video-passes 4", marks=pytest.mark.slow),
    pytest.param("npu", "--cache 1.6 --memory.weights host", marks=pytest.mark.slow),
]


@pytest.mark.dry
@pytest.mark.parametrize("device, words", KEPT)
def test_what_is_kept_of_the_video_is_planned_as_it_is_counted(device, words):
    """3 layers, each with a bridge: a tenth of all, of which nearly nothing may be missing."""
    settings = SAMPLE.parse(["--checkpoint", "mova-360p", "--prompt", "x", "--device", device, *words.split()])
    target = "mova_engine.inference.dry_run:in_this_process"
    found = Rehearsal.from_dict(rehearse(target, settings, device, RehearsalOptions(dry_run=True), 3))
    assert found.predicted == pytest.approx(found.peak, rel=0.045), str(found)


@pytest.mark.dry
@pytest.mark.parametrize("command, device, words", CHUNKS)
def test_chunks_of_tokens_are_planned_as_they_are_counted(command, device, words):
    settings = (SAMPLE if command == "inference" else TRAIN).parse(
        [*words.split(), "--device", device, "--memory.chunking", "rows", *CHECKPOINTED * (command == "train")]
    )
    target = f"mova_engine.{command}.dry_run:in_this_process"
    found = Rehearsal.from_dict(rehearse(target, settings, device, RehearsalOptions(dry_run=True), 3))
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)


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
