"""A run of adapters by the planner's choice of memory: said, measured, and the same adapters to the bit."""

import re

import pytest
import torch
from deep_model import save_deep
from safetensors.torch import load_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova
from mova_engine.checkpoints.locate import ADAPTERS
from mova_engine.config.recipes import TRAIN, load_config
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.ops import bind
from mova_engine.ops.machine import assumed_machine
from mova_engine.train.dry_run import dry_run_training
from mova_engine.train.lora_memory import choose_for_adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_deep(tmp_path_factory.mktemp("base") / "model")


@pytest.mark.long
def test_auto_picks_what_fits_and_trains_the_same_adapters(small, ran, base):
    def config(out, **options):
        return small(out, steps=2, lora={"rank": 2}, optim={"ema": 0}, model={"checkpoint": base}, **options)

    plain, roomy = ran(config("plain", memory="resident")), ran(config("roomy", memory="auto"))
    assert "memory: resident (--memory.checkpointing none), planned" in roomy.said and "memory:" not in plain.said
    from_files = config("", memory={"checkpointing": "full", "weights": "files"}, ram="1GB")
    least = choose_for_adapters(from_files, get_backend("cpu"), Processes())
    assert least.planned_bytes < 0.8 * roomy.trainer.chosen.planned_bytes
    limit = 1.01 * least.planned_bytes / least.plan.hardware.usable
    tight = ran(config("tight", memory="auto", ram=f"{limit / 1e6:.3f}MB"))
    assert "memory: disk" in tight.said and "weights: files" in (tight.config.folder / "config.yaml").read_text()
    measured = r"memory: [\d.]+ GB were used at most by the whole process, [\d.]+ planned; [\d.]+ s a step"
    assert re.search(measured, tight.said)
    runs = (plain, roomy, tight)
    expected, *others = (load_file(run.config.folder / "checkpoints/step-000002" / ADAPTERS) for run in runs)
    for found in others:
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_auto_counts_a_quantised_base(small, base, tmp_path):
    """At nano's widths all but a few of the weights are in layers; beside int8 activations may have any dtype."""
    quantise_folder(base, tmp_path / "int8", "int8")

    def weights(folder):
        config = small("none", lora={"rank": 2}, optim={"ema": 0}, model={"checkpoint": folder}, memory="auto")
        plan = choose_for_adapters(config, get_backend("cpu"), Processes()).plan
        return plan.run.quantised, plan.memory.device["weights"]

    (plain, wide), (kind, narrow) = weights(base), weights(tmp_path / "int8")
    model = load_mova(tmp_path / "int8", bind(get_backend("cpu")), device="cpu", dtype=torch.float32)
    held = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    assert (plain, kind) == (None, "int8") and narrow == pytest.approx(held, rel=0.05) and narrow < 0.35 * wide


def test_what_does_not_fit_is_refused_before_anything_is_written(small, ran, base):
    config = small("none", lora={"rank": 4}, optim={"ema": 0}, model={"checkpoint": base}, memory="auto", ram="1MB")
    with pytest.raises(MovaError, match=r"nothing fits .*would fit: .*--ram"):
        ran(config)
    assert not config.folder.exists()


def test_files_say_it_as_the_command_line_does(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("base: lora\nmemory: auto\nram: 32GB\n")
    read = load_config(str(file))
    assert read.memory == TRAIN.parse(["--recipe", "lora", "--memory", "auto"]).memory and read.memory.undecided
    assert TRAIN.parse(["--recipe", str(file), "--memory.weights", "files"]).memory.weights == "files"
    file.write_text("base: lora\nmemory: disk\n")
    assert load_config(str(file)).memory.checkpointing == "selective", "what the word does not say is the recipe's"
    file.write_text("base: lora\nmemory: dsk\n")
    with pytest.raises(MovaError, match="Did you mean 'disk'"):
        load_config(str(file))
    with pytest.raises(MovaError, match="auto is for adapters"):
        load_config("nano", memory="auto")
    with pytest.raises(MovaError, match="limit runs of adapters"):
        load_config("nano", vram="12GB")
    with pytest.raises(MovaError, match="memory.checkpointing auto is chosen where a run starts"):
        dry_run_training(read, assumed_machine("cuda", "sm90"))
