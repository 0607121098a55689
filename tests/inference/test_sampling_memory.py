"""Sampling by the planner's choice of memory: what it says before and after, and the same clips to the bit."""

import re
from dataclasses import replace

import pytest
import torch
from deep_model import DEEP, save_deep

from mova_engine.backend import get_backend
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.sampling_memory import choose_for_sampling

CPU = get_backend("cpu")
SIZES = ClipSettings(frames=9, height=32, width=48)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return save_deep(tmp_path_factory.mktemp("deep") / "model")


def between(folder, batch: int) -> str:
    """A limit of the host's memory in which some layers fit, but not all of them."""
    model = replace(DEEP, clip=SIZES.over(DEEP.clip))

    def planned(word: str) -> float:
        facts = {"dtype": torch.float32, "evaluations": 1, "batch": batch, "ram": "1GB"}
        chosen = choose_for_sampling(memory_of_word(word), folder, model, CPU, **facts)
        return chosen.planned_bytes / chosen.plan.hardware.usable

    assert planned("disk") < 0.6 * planned("resident")
    return f"{(planned('disk') + planned('resident')) / 2e6:.3f}MB"


def test_auto_under_a_small_limit_reads_layers_from_disk_and_changes_no_bit(deep):
    def clip(**options):
        pipeline = Pipeline.from_pretrained(deep, "cpu", clip=SIZES, **options)
        return pipeline, pipeline("a ball", seed=1, steps=2)

    plain, expected = clip(memory="resident")
    small, found = clip(memory="auto", ram=between(deep, 16))
    assert plain.chosen is None and small.chosen.config.mode == "disk"
    assert small.mova.streamed is not None and plain.mova.streamed is None
    assert (found.frames == expected.frames).all() and (found.audio == expected.audio).all()
    assert Pipeline.from_pretrained(deep, "cpu", memory="auto").chosen.config.mode == "resident"


def test_the_command_says_what_it_chose_and_what_was_measured(deep, tmp_path, capsys):
    given = ["--checkpoint", str(deep), "--prompt", "a ball", "--steps", "2", "--device", "cpu", "--memory", "auto"]
    given += [word for name in ("frames", "height", "width") for word in (f"--clip.{name}", str(getattr(SIZES, name)))]
    assert main([*given, "--ram", between(deep, 1), "--out", str(tmp_path / "clips")]) == 0
    said = capsys.readouterr().err
    assert re.search(r"memory: disk, planned [\d.]+ GB of [\d.]+, seconds are not predicted for this device", said)
    assert re.search(r"memory: [\d.]+ GB were used at most by the whole process, [\d.]+ planned; [\d.]+ s a step", said)
    with pytest.raises(MovaError, match=r"nothing fits .* would fit: .*--ram"):
        main([*given, "--ram", "1MB", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_words_are_settings_and_single_ones_win():
    def parsed(*words):
        return SAMPLE.parse(["--checkpoint", "m", "--prompt", "x", *words]).memory

    assert parsed("--memory", "disk") == MemoryConfig(weights="files", idle="files")
    assert parsed("--memory=stream", "--memory.idle", "files") == MemoryConfig(weights="host", idle="files")
    auto = parsed("--memory.weights", "host", "--memory", "auto")
    assert auto.decided == {"weights": "host", "frozen": "activations"}
