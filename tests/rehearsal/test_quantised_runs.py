"""Dry runs of models with quantised weights: what folders hold, or would, is counted, and planned."""

import pytest
import torch
from memory.test_quantised_folders import SIZES
from models.test_towers import build

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova, save_mova
from mova_engine.config.recipes import TRAIN, load_config
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError
from mova_engine.inference.dry_run import dry_run_sampling
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.ops import bind
from mova_engine.ops.machine import assumed_machine
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.rehearsal.weights import local_tensors
from mova_engine.train.dry_run import dry_run_training

SAMPLING = "mova_engine.inference.dry_run:in_this_process"
TRAINING = "mova_engine.train.dry_run:in_this_process"
# Quantised weights of a model size: on load, or as the files of a folder that is not here would hold them.
QUANTISED = {
    "sampled on a GPU": ("sample", "cuda", "--memory.frozen nf4"),
    "sampled on an NPU, whose GELU is a composition": ("sample", "npu", "--memory.frozen int8"),
    "sampled layer by layer": ("sample", "cuda", "--stored nf4 --memory.weights host"),
    "sampled in int8 on a GPU, rows quantised a few at a time": ("sample", "cuda", "--stored int8"),
    "adapters on a GPU": ("train", "cuda", "--stored nf4"),
    "adapters beside int8": ("train", "cuda", "--memory.frozen int8"),
    "adapters layer by layer on an NPU": (
        "train",
        "npu",
        "--stored nf4 --memory.weights files --memory.checkpointing full --memory.inputs host",
    ),
}


@pytest.mark.dry
@pytest.mark.parametrize("run", QUANTISED)
def test_quantised_weights_are_counted_and_planned(run):
    command, device, more = QUANTISED[run]
    of, first = {
        "sample": (SAMPLING, "--checkpoint mova-360p --prompt x"),
        "train": (TRAINING, "--recipe lora --global-batch-size 1"),
    }[command]
    words = f"{first} --device {device} --dry-run {more}".split()
    config, options = (SAMPLE if command == "sample" else TRAIN).parse_both(words)
    found = Rehearsal.from_dict(rehearse(of, config, device, options, 3))
    assert found.predicted == pytest.approx(found.peak, rel=0.05), str(found)
    host = sum(found.host_memory_bytes.values())
    assert sum(found.predicted_host_memory_bytes.values()) == pytest.approx(host, rel=0.05), str(found)
    kind = "int8" if "int8" in more else "uint8"
    assert found.shapes[f"video_dit, weights in {kind}"] and not found.copied.get("unforeseen")


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    cpu = get_backend("cpu")
    folder = tmp_path_factory.mktemp("models")
    save_mova(build(bind(cpu), cpu, SIZES), folder / "plain")
    quantise_folder(folder / "plain", folder / "nf4", "nf4", components=("video_dit", "audio_dit", "dual_tower_bridge"))
    return folder / "nf4"


@pytest.mark.dry
def test_a_quantised_folder_is_rehearsed_by_its_headers(quantised):
    """The bytes that are counted are those that the sampler holds: of one expert in NF4, of the other in float32."""
    words = ["--checkpoint", str(quantised), "--prompt", "x", "--device", "cpu", "--dtype", "float32", "--dry-run"]
    config, options = SAMPLE.parse_both(words)
    found = Rehearsal.from_dict(rehearse(SAMPLING, config, "cpu", options))
    model = load_mova(quantised, bind(get_backend("cpu")), device="cpu", dtype=torch.float32)
    held = {name: sum(x.nbytes for x in local_tensors(part)) for name, part in model.named_children()}
    assert found.peak_memory_bytes["parameters"] == sum(held.values()) and held["video_dit_2"] > 2 * held["video_dit"]


def test_what_a_rehearsal_of_quantised_weights_refuses(quantised):
    machine = assumed_machine("cpu")
    for words, message in (
        ("--memory.frozen int8", "video_dit is in nf4 already; leave memory.frozen out"),
        ("--parallel.shard", "holds weights in nf4: parallel.shard divides plain weights"),
    ):
        sampled = SAMPLE.parse(f"--checkpoint {quantised} --prompt x {words}".split())
        trained = TRAIN.parse(f"--recipe lora --model.checkpoint {quantised} {words}".split())
        with pytest.raises(MovaError, match=message):
            dry_run_sampling(sampled, machine)
        with pytest.raises(MovaError, match=message):
            dry_run_training(trained, machine)
    with pytest.raises(MovaError, match="--stored int8: the files of .*nf4 say so themselves; leave it out"):
        dry_run_sampling(SAMPLE.parse(["--checkpoint", str(quantised), "--prompt", "x"]), machine, stored="int8")
    with pytest.raises(MovaError, match="--stored int8: lora starts from .*nf4, whose files say so themselves"):
        dry_run_training(TRAIN.parse(f"--recipe lora --model.checkpoint {quantised}".split()), machine, stored="int8")
    with pytest.raises(MovaError, match="--stored int8: nano trains all weights; leave it out"):
        dry_run_training(load_config("nano"), machine, stored="int8")
    with pytest.raises(MovaError, match="weights in fp8 compute in bfloat16, not in float32"):
        fp8 = "--checkpoint mova-360p --prompt x --memory.frozen fp8 --dtype float32"
        dry_run_sampling(SAMPLE.parse(fp8.split()), machine)


@pytest.mark.parametrize("words", ["--audio-alone", "--seconds 20"])
def test_what_is_no_joint_step_is_not_rehearsed(words):
    with pytest.raises(MovaError, match=f"leave {words.split()[0]} out"):
        dry_run_sampling(SAMPLE.parse(f"--checkpoint mova-360p --prompt x {words}".split()), assumed_machine("cpu"))
