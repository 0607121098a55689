"""Rehearsals of the recipes: one at full size for each kind of device, the rest with two layers."""

import json
import subprocess
import sys

import pytest

from mova_engine.config.recipes import load_config
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal

SAMPLING = "mova_engine.inference.dry_run:in_this_process"
TRAINING = "mova_engine.train.dry_run:in_this_process"
ANSWERS = ("recipe", "device", "world_size", "height", "width", "frames", "video_tokens", "clips_per_step")


def _rehearse(recipe: str, device: str, world_size: int, layers: int | None = 2, **overrides) -> Rehearsal:
    options = RehearsalOptions(dry_run=True, world_size=world_size)
    return Rehearsal.from_dict(rehearse(TRAINING, load_config(recipe, **overrides), device, options, layers))


@pytest.mark.dry
@pytest.mark.timeout(1200)  # minutes of one core, of which a busy machine gives a part
def test_the_whole_model_at_720p_on_a_fake_npu():
    command = "--recipe joint-phase3 --dry-run --json --device npu --world-size 1024"
    done = subprocess.run([sys.executable, "-m", "mova_engine.train", *command.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    values = json.loads(done.stdout)
    assert {name: values[name] for name in ANSWERS} == {
        "recipe": "joint-phase3", "device": "npu", "world_size": 1024, "height": 720, "width": 1280, "frames": 193,
        "video_tokens": 176400, "clips_per_step": 64,
    }  # fmt: skip
    found = Rehearsal.from_dict(values)
    sent = {(x.kind, x.group): x for x in found.collectives}
    # Forward and backward gather one expert's 40 blocks, the sound's 30 and 60 of the bridge, and what is beside them.
    assert sent["all_gather", "world"].calls > 2 * (40 + 30 + 60)
    assert sent["all_to_all", "ulysses"].ranks == 8 and sent["send", "ring"].ranks == 2
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)


@pytest.mark.dry
@pytest.mark.parametrize("device", ["cuda", "npu"])
@pytest.mark.parametrize(
    "recipe, world_size", [("nano", 1), ("audio-pretrain", 16), ("joint-phase1", 8), ("joint-phase2", 64)]
)
def test_recipes_of_all_weights(recipe, world_size, device):
    found = _rehearse(recipe, device, world_size)
    assert found.device == device and found.peak_memory_bytes["parameters"] > 0
    assert found.peak_memory_bytes["moments"] == pytest.approx(2 * found.peak_memory_bytes["parameters"], rel=1 / 2)


@pytest.mark.dry
@pytest.mark.parametrize("recipe, world_size", [("nano", 1), ("joint-phase1", 8), ("lora", 4)])
def test_the_host_waits_for_the_device_once_a_step(recipe, world_size):
    """When it has launched all of it. On an NPU, whose fused AdamW is not known to skip a step, before the update."""
    shared = {"parallel": {"shard": True, "context_parallel": 4}} if recipe == "lora" else {}
    for device in ("cuda", "npu"):
        found = _rehearse(recipe, device, world_size, **shared)
        assert found.host_waits == {"update: a value is read": 1}, (device, found.host_waits)


@pytest.mark.dry
@pytest.mark.parametrize("device", ["cuda", "npu"])
def test_adapters(device):
    found = _rehearse("lora", device, 1)
    assert found.peak_memory_bytes["moments"] < found.peak_memory_bytes["parameters"] / 50


@pytest.mark.parametrize(
    "name, value", [("world_size", 8), ("assume", "sm90"), ("json", True), ("packages", "apex"), ("stored", "nf4")]
)
def test_options_of_a_rehearsal_need_one(name, value):
    with pytest.raises(MovaError, match="says what is tried by --dry-run"):
        RehearsalOptions(**{name: value})


@pytest.mark.dry
@pytest.mark.parametrize("device, checkpoint", [("cuda", "mova-360p"), ("npu", "mova-720p")])
def test_a_denoising_step(device, checkpoint):
    words = f"--checkpoint {checkpoint} --prompt x --device {device} --parallel.context-parallel 2 --parallel.cfg 2"
    options = RehearsalOptions(dry_run=True, world_size=4)
    found = Rehearsal.from_dict(rehearse(SAMPLING, SAMPLE.parse(words.split()), device, options, 2))
    assert found.command == "sample" and found.clips_per_step == 1
    sent = {(x.kind, x.group) for x in found.collectives}
    assert {("all_to_all", "ulysses"), ("broadcast", "context_parallel"), ("all_to_all", "cfg")} <= sent
    simulated = found.simulation
    assert simulated is not None and simulated.data["clips"] == 1 and simulated.noise == {"different": 1, "alike": 4}


@pytest.mark.dry
@pytest.mark.parametrize("device", ["cuda", "npu"])
@pytest.mark.parametrize("recipe", ["lora-24gb", "lora-80gb"])
def test_presets_for_cards(recipe, device):
    """What selective checkpointing keeps does not depend on which layers are fetched ahead."""
    found = _rehearse(recipe, device, 1)
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
    assert found.copied["copies"] > 0 and found.copied["unforeseen"] == 0


@pytest.mark.dry
@pytest.mark.parametrize("device, where, saved", [("cuda", "host", ""), ("npu", "files", ""), ("cuda", "host", "host")])
def test_layers_that_come_one_by_one(device, where, saved):
    """The ring is on the device, the arena or one layer of a file on the host. Each layer is copied for the forward and
    for the backward, except the layers that are still in the ring. Memory is as planned.
    """
    memory = {"weights": where, "checkpointing": "full", "inputs": "host"}
    memory |= {"checkpointing": "selective", "saved": saved} if saved else {}
    found = _rehearse("lora", device, 1, 3, memory=memory, global_batch_size=1)
    ring, arena = found.peak_memory_bytes["layers on their way"], found.host_memory_bytes["parameters"]
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
    assert sum(found.predicted_host_memory_bytes.values()) == pytest.approx(
        sum(found.host_memory_bytes.values()), rel=0.05
    ), str(found)
    assert found.copied["copies"] == 2 * 3 - 2 and found.copied["unforeseen"] == 0
    assert found.copied["bytes"] == 4 * ring / 2
    # On the host one layer, or three of each expert, which share their sound's blocks and bridges.
    assert arena == ring / 2 if where == "files" else 5 * ring / 2 < arena < 6 * ring / 2


@pytest.mark.dry
def test_a_denoising_step_with_layers_that_come_one_by_one():
    config = SAMPLE.parse(
        ["--checkpoint", "mova-360p", "--prompt", "x", "--device", "cuda", "--memory.weights", "host"]
    )
    found = Rehearsal.from_dict(rehearse(SAMPLING, config, "cuda", RehearsalOptions(dry_run=True), 2))
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
    host = sum(found.host_memory_bytes.values())
    assert sum(found.predicted_host_memory_bytes.values()) == pytest.approx(host, rel=0.05), str(found)
    # Both branches of guidance pass a layer together.
    assert found.copied == {"copies": 2, "bytes": found.peak_memory_bytes["layers on their way"], "unforeseen": 0}
