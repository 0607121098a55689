"""Sampling by the planner's choice of memory: what it says before and after, and the same clips to the bit."""

import re
from dataclasses import replace

import pytest
import torch
from deep_model import DEEP, save_deep

from mova_engine.adapters.lora import adapted_layers, add_lora, save_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_mova
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig, memory_of_word
from mova_engine.config.rehearsal import RehearsalOptions
from mova_engine.config.sample import SAMPLE
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.inference.__main__ import main
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.sampling_memory import added_adapters, choose_for_sampling, kept_of
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.ops import bind
from mova_engine.predict.job import KeptVideo
from mova_engine.predict.step_traffic import component_bytes
from mova_engine.rehearsal.rehearse import rehearse
from mova_engine.rehearsal.result import Rehearsal

CPU = get_backend("cpu")
SIZES = ClipSettings(frames=9, height=32, width=48)


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    return save_deep(tmp_path_factory.mktemp("deep") / "model")


def between(folder, batch: int, dtype: torch.dtype = torch.float32) -> str:
    """A limit of the host's memory in which some layers fit, but not all of them."""
    model = replace(DEEP, clip=SIZES.over(DEEP.clip))

    def planned(word: str) -> float:
        facts = {"dtype": dtype, "evaluations": 1, "batch": batch, "ram": "1GB"}
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


def test_adapters_that_are_added_are_counted(deep, tmp_path):
    """To the byte on the device; large ones decide where the weights are."""
    mova = load_mova(deep, bind(CPU), device="cpu").requires_grad_(False)
    add_lora(mova, ("q", "v", "ffn.0"), 16, 16.0)
    save_lora(mova, tmp_path / "large.safetensors")
    lora = [AdapterSpec(tmp_path / "large.safetensors")]
    found = added_adapters(lora)
    facts = {"dtype": torch.bfloat16, "evaluations": 1, "batch": 1, "ram": "1GB"}
    model = replace(DEEP, clip=SIZES.over(DEEP.clip))
    for word in ("resident", "disk"):
        settings = memory_of_word(word)
        plain, added = (
            choose_for_sampling(settings, deep, model, CPU, **facts, lora=each).plan.memory for each in ((), lora)
        )
        pipeline = load_pipeline(deep, CPU, dtype=torch.bfloat16, memory=settings, lora=lora, config=model)
        next(pipeline.generate([Request("a ball", 1)], SampleSettings(1)))
        layers = adapted_layers(pipeline.mova).values()
        counted = sum(half.weight.nbytes for layer in layers for half in (layer.lora_A, layer.lora_B))
        assert counted == added.device["adapters"] and "adapters" not in plain.device
        held = pipeline.adapters.stack("video_dit")[0][0].layers.values()
        assert (
            sum(pair.a.nbytes + pair.b.nbytes for pair in held)
            == added.host["adapters as they were read"]
            == found.stored
        )
        assert added.shared == pytest.approx(plain.shared + counted + found.stored)
    plans = [choose_for_sampling(memory_of_word("resident"), deep, model, CPU, **facts, lora=x) for x in ((), lora)]
    between = sum(plan.planned_bytes for plan in plans) / 2 / plans[0].plan.hardware.usable
    facts["ram"] = f"{between / 1e6:.3f}MB"
    chosen = [
        choose_for_sampling(memory_of_word("auto"), deep, model, CPU, **facts, lora=x).config.mode for x in ((), lora)
    ]
    assert chosen == ["resident", "disk"]


@pytest.mark.parametrize("form, branches", [("text", 2), ("dual", 3), ("none", 1)])
def test_what_is_kept_of_the_video_is_counted_to_the_byte(deep, form, branches):
    """In a step cache keys and values of each bridge layer and evaluation with the bridge, and velocities."""
    pipeline, held = load_pipeline(deep, CPU, dtype=torch.bfloat16, clip=SIZES.over(DEEP.clip)), []

    def observe(seen):
        read = [each for record in seen.recording.read.values() if record for each in record.layers.values()]
        kept = [*(x for pair in read for x in pair), *seen.recording.video.values()]
        held.append(sum(x.numel() * x.element_size() for x in kept))

    settings = SampleSettings(2, Guidance(form))
    list(pipeline.latents([Request("a ball", 1), Request("rain", 2)], settings, batch=2, observe=observe))
    config = SAMPLE.parse(["--checkpoint", str(deep), "--prompt", "x", "--cache", "1.6"])
    facts = {"dtype": torch.bfloat16, "evaluations": branches, "batch": 2, "ram": "1GB"}
    facts["kept"] = kept_of(config, settings, planned=True)
    model = replace(DEEP, clip=SIZES.over(DEEP.clip))
    found = choose_for_sampling(memory_of_word("resident"), deep, model, CPU, **facts).plan.memory
    assert held == [found.device["keys and values of the video"]] * 2


def test_a_step_cache_that_does_not_fit_is_refused_and_said(deep):
    model = replace(DEEP, clip=SIZES.over(DEEP.clip))
    facts = {"dtype": torch.bfloat16, "evaluations": 2, "batch": 16}
    with_cache = {**facts, "kept": KeptVideo(2, velocities=True)}
    plain, kept = (
        choose_for_sampling(memory_of_word("resident"), deep, model, CPU, ram="1GB", **each).plan
        for each in (facts, with_cache)
    )
    between = f"{(plain.memory.shared + kept.memory.shared) / 2 / plain.hardware.usable / 1e6:.4f}MB"
    settings = replace(memory_of_word("resident"), chunking="none", idle="device")
    choose_for_sampling(settings, deep, model, CPU, ram=between, sequential=True, **facts)
    with pytest.raises(MovaError, match=r"would fit: .*both towers in each step \(without --cache"):
        choose_for_sampling(settings, deep, model, CPU, ram=between, sequential=True, **with_cache)


def test_auto_on_a_quantised_folder_counts_its_bytes_and_changes_no_bit(deep, tmp_path):
    quantise_folder(deep, tmp_path / "int8", "int8")

    def clip(**options):
        pipeline = Pipeline.from_pretrained(tmp_path / "int8", "cpu", clip=SIZES, **options)
        return pipeline, pipeline("a ball", seed=1, steps=2)

    limit = between(tmp_path / "int8", 16, torch.bfloat16)
    (roomy, expected), (small, found) = clip(memory="auto"), clip(memory="auto", ram=limit)
    assert (roomy.chosen.config.mode, small.chosen.config.mode) == ("resident", "disk")
    assert (found.frames == expected.frames).all() and (found.audio == expected.audio).all()
    run = roomy.chosen.plan.run
    held = sum(x.nbytes for x in (*roomy.mova.parameters(), *roomy.mova.buffers()))
    assert run.quantised == "int8" and sum(component_bytes(run).values()) == pytest.approx(held, rel=0.02)


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


@pytest.mark.dry
def test_a_dry_run_of_a_network_that_predicts_x0(saved_run):
    """Whose noise levels must not be zero: those of a dry run have no values."""
    config = SAMPLE.parse(["--checkpoint", str(saved_run), "--prompt", "rain", "--device", "cpu"])
    found = Rehearsal.from_dict(
        rehearse("mova_engine.inference.dry_run:in_this_process", config, "cpu", RehearsalOptions(dry_run=True), 2)
    )
    assert found.command == "sample"
