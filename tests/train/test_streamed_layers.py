"""Adapters trained on a base whose layers come to the device one by one: a whole run, of three layers a tower."""

import gc
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mova_engine.checkpoints.locate import ADAPTERS
from mova_engine.config.recipes import load_config
from mova_engine.config.train import LoraSettings
from mova_engine.errors import MovaError
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.train.trainer import Trainer


@pytest.fixture(autouse=True, scope="module")
def _one_layer():
    """All layers of nano, unlike elsewhere in this folder: with one nothing would be overwritten."""


@pytest.fixture
def adapted(small, tmp_path, clips):
    """Configurations of LoRA runs on a base of two steps."""
    settings = {"loader": {"batch": 2, "num_fit_clips": 4}, "validation": {"every": 0}, "log": {"tensorboard": False}}
    optim = {"ema": 0, "warmup": 0}
    config = load_config("nano", data=clips, out=tmp_path / "base", steps=2, device="cpu", optim=optim, **settings)
    assert Trainer(config).run() == 0
    base = tmp_path / "base" / "checkpoints" / "step-000002"

    def make(out: str, **overrides):
        return small(out, lora={"rank": 4}, model={"checkpoint": base}, **overrides)

    return make


@pytest.mark.long
def test_adapters_train_on_layers_that_come_one_by_one(adapted, ran, clips):
    """To the bit, with the losses of validations and their samples, which use the same stream; what layers keep for the
    backward waits on the host.
    """
    away = {"weights": "files", "inputs": "host", "saved": "host"}
    runs = [
        ran(
            adapted(
                out,
                memory={"checkpointing": "selective", **memory},
                validation={"every": 4, "data": str(clips), "clips": 2, "samples": 1},
            )
        )
        for out, memory in (("resident", {}), ("streamed", away))
    ]
    assert runs[0].losses == runs[1].losses and len(runs[0].losses) > 2
    one, other = (load_file(run.config.folder / "checkpoints/step-000004" / ADAPTERS) for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in one.items())
    pictures = [sorted(run.config.folder.glob("samples/step-000004/*.mp4")) for run in runs]
    assert pictures[0] and [x.read_bytes() for x in pictures[0]] == [x.read_bytes() for x in pictures[1]]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["device", "files"])
def test_twenty_rounds_of_training_and_sampling_leave_memory_and_losses_as_they_were(
    adapted, ran, clips, weights, monkeypatch
):
    rounds, held = 20, []

    def count(trainer, *args) -> None:
        validated(trainer, *args)
        gc.collect()
        tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        held.append((len(tensors), sum(x.nbytes for x in tensors), len(os.listdir("/proc/self/fd")), resident))

    validated = Trainer._validate
    monkeypatch.setattr(Trainer, "_validate", count)
    memory = {"checkpointing": "selective", "weights": weights}
    if weights == "files":
        memory |= {"inputs": "host", "saved": "host"}
    sampling = {"every": 1, "data": str(clips), "clips": 2, "samples": 1}
    sampled = ran(adapted("sampled", steps=rounds, memory=memory, validation=sampling))
    counts = held[:]
    plain = ran(adapted("plain", steps=rounds, memory=memory))
    assert sampled.losses == plain.losses and len(plain.losses) == rounds == len(counts)
    assert len(list(sampled.config.folder.glob("samples/*/*.mp4"))) == rounds
    # Tensors, their bytes and open files: from the second round on none more.
    assert len({each[:3] for each in counts[2:]}) == 1, counts
    # The process's memory: by less than a clip's pictures in eighteen rounds.
    assert counts[-1][3] - counts[2][3] < 4 << 20, [each[3] >> 10 for each in counts]


@pytest.mark.long
def test_adapters_train_on_a_quantised_folder_resident_and_streamed(adapted, ran, tmp_path):
    """To the bit; and what cannot be trained is refused before anything is read."""
    base, folder = adapted("x").model.checkpoint, tmp_path / "int8"
    quantise_folder(base, folder, "int8")
    common = {"dtype": "bfloat16", "steps": 2, "memory": {"checkpointing": "full"}}

    def config(out, **more):
        settings = {**common, **more}
        settings["memory"] = {**common["memory"], **more.get("memory", {})}
        made = adapted(out, **settings)
        return replace(made, model=replace(made.model, checkpoint=folder))

    runs = [ran(config(out, memory={"weights": weights})) for out, weights in (("one", "device"), ("two", "files"))]
    assert all(run.status == 0 and "frozen weights in int8" in run.said for run in runs)
    assert runs[0].losses == runs[1].losses and len(runs[0].losses) == 2
    one, other = (load_file(run.config.folder / "checkpoints/step-000002" / ADAPTERS) for run in runs)
    assert all(torch.equal(x, other[key]) and x.dtype == torch.bfloat16 for key, x in one.items())
    with pytest.raises(MovaError, match="memory.frozen fp8: .*video_dit is in int8 already"):
        ran(config("three", memory={"frozen": "fp8"}))
    whole = replace(config("three"), lora=LoraSettings())
    with pytest.raises(MovaError, match="holds weights in int8: all weights of this run are trained"):
        ran(whole)
