"""Adapters trained on a base whose layers come to the device one by one: a whole run, of three layers a tower."""

import pytest
import torch
from safetensors.torch import load_file

from mova_engine.checkpoints.locate import ADAPTERS
from mova_engine.config.recipes import load_config
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


def test_adapters_train_on_layers_that_come_one_by_one(adapted, ran, clips):
    """To the bit, with the losses of validations and their samples, which use the same stream."""
    runs = [
        ran(
            adapted(
                out,
                memory={"checkpointing": "selective", "weights": weights},
                validation={"every": 4, "data": str(clips), "clips": 2, "samples": 1},
            )
        )
        for out, weights in (("resident", "device"), ("streamed", "files"))
    ]
    assert runs[0].losses == runs[1].losses and len(runs[0].losses) > 2
    one, other = (load_file(run.config.folder / "checkpoints/step-000004" / ADAPTERS) for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(x, other[key]) for key, x in one.items())
    pictures = [sorted(run.config.folder.glob("samples/step-000004/*.mp4")) for run in runs]
    assert pictures[0] and [x.read_bytes() for x in pictures[0]] == [x.read_bytes() for x in pictures[1]]
