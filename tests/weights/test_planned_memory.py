"""What the cost model plans for a model is what is counted of it, by part and stage, in sampling and in a LoRA run."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_codecs, mova_config_from_folder
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS
from mova_engine.config.recipes import load_config
from mova_engine.config.stages import CODEC_PARTS, DECODE_AUDIO, DECODE_VIDEO, ENCODE_CLIPS, ENCODE_FRAMES, ENCODE_TEXT
from mova_engine.data.synthetic.bounce import generate
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.predict import codec_cost
from mova_engine.predict.job import Job, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.train import trainer
from mova_engine.train.trainer import Trainer


def size(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


@pytest.fixture
def codecs(complete, monkeypatch) -> dict[str, int]:
    """Parameters and buffers of the folder's small codecs by part, of which the cost model is told."""
    loaded = load_codecs(complete)
    found = {
        part: sum(x.numel() for x in [*codec.weights.parameters(), *codec.weights.buffers()])
        for part, codec in zip(CODEC_PARTS, (loaded.text, loaded.video, loaded.audio), strict=True)
    }
    blocks = loaded.text.weights.encoder.block
    in_blocks = sum(x.numel() for x in blocks.parameters())
    monkeypatch.setattr(codec_cost, "_UMT5_EMBEDDING", found[CODEC_PARTS[0]] - in_blocks)
    monkeypatch.setattr(codec_cost, "_UMT5_BLOCKS", len(blocks))
    for name, part in zip(("_UMT5_WEIGHTS", "_WAN_WEIGHTS", "_DAC_WEIGHTS"), CODEC_PARTS, strict=True):
        monkeypatch.setattr(codec_cost, name, found[part])
    return found


def pictures_at_work(run: PlannedRun) -> dict[str, float]:
    """What is planned for the codecs' work, by stage, which the residency does not count."""
    return {ENCODE_FRAMES: codec_cost.encoding_bytes(run), DECODE_VIDEO: codec_cost.decoding_bytes(run)}


@pytest.mark.parametrize("idle", ["host", "files", "device"])
@pytest.mark.parametrize("expert", ["device", "host"])
def test_sampling_holds_what_was_planned_of_each_stage(complete, codecs, expert, idle):
    settings = MemoryConfig(expert=expert, idle=idle)
    pipeline = load_pipeline(complete, get_backend("cpu"), dtype=torch.float32, memory=settings)
    for _ in range(2):
        list(pipeline.generate([Request("ball")], SampleSettings(2)))
    run = PlannedRun(Job(pipeline.mova.config, "inference", "fp32"), policy=settings)
    planned, pictures = memory(run), pictures_at_work(run)
    working = planned.device["working set of a layer"]
    counted = {name: sum(parts.values()) for name, parts in pipeline.residency.report().stages.items()}
    weights = {
        name: total - working * name.startswith("denoise") - pictures.get(name, 0)
        for name, total in planned.stages.items()
    }
    assert counted == pytest.approx(weights, rel=1e-9)


@pytest.mark.parametrize("idle", ["host", "device"])
def test_sampling_layer_by_layer_holds_what_was_planned(complete, codecs, idle):
    """Layers in files hold what those on a host do, of which there is none apart from a CPU's memory."""
    settings = MemoryConfig(weights="files", idle=idle)
    pipeline = load_pipeline(complete, get_backend("cpu"), dtype=torch.float32, memory=settings)
    for _ in range(2):
        list(pipeline.generate([Request("ball")], SampleSettings(2)))
    job = Job(pipeline.mova.config, "inference", "fp32")
    run = PlannedRun(job, policy=replace(settings, weights="host"))
    planned, pictures = memory(run), pictures_at_work(run)
    stream = pipeline.mova.streamed.stream
    # Each tensor begins at a multiple of 256 bytes in its slot, which shows in a model as small as this.
    ring = stream.report().ring_bytes
    padding = 2 * max(unit.bytes - sum(place.bytes for place in unit.places) for unit in stream.units)
    assert planned.device["layers on their way"] == ring - padding
    layers = {id(chunk.module): chunk for unit in stream.units for chunk in unit.chunks}
    assert planned.host["weights"] + planned.host["second video expert"] == sum(
        place.bytes for chunk in layers.values() for place in chunk.places
    )
    counted = {name: sum(parts.values()) for name, parts in pipeline.residency.report().stages.items()}
    beside = {name: 0.0 if name.startswith("encode") else planned.device["layers on their way"] for name in counted}
    # Two blocks of the text encoder, whose slots are no part either.
    beside[ENCODE_TEXT] = 2.0 * codec_cost.streamed_text_bytes(PlannedRun(job))[1]
    working = planned.device["working set of a layer"]
    outside = {
        name: total - beside[name] - working * name.startswith("denoise") - pictures.get(name, 0)
        for name, total in planned.stages.items()
    }
    assert counted == pytest.approx(outside, rel=1e-9)


@pytest.mark.long
def test_a_lora_run_holds_what_was_planned(complete, codecs, tmp_path, monkeypatch):
    """Weights, adapters, gradients and moments by part while it trains; text encoder and codecs never beside them, but
    for the one that decodes samples.
    """
    held, step = {}, trainer.Updater.step

    def counted(updater, *given, **options):
        result = step(updater, *given, **options)
        run = runs[0]
        adapters = run.state.weights.tensors()
        held["adapters"] = size(adapters)
        held["optimizer's moments"] = size(
            x for state in run.state.optimizer.state.values() for x in state.values() if x.ndim
        )
        frozen = [name for name in COMPONENTS if getattr(run.model, name) is not None]
        weights = {
            name: size(x for key, x in getattr(run.model, name).named_parameters() if ".lora_" not in key)
            for name in frozen
        }
        held["second video expert"] = weights.pop("video_dit_2")
        held["weights"] = sum(weights.values())
        held["codecs"] = sum(part.bytes for part in run.residency.report().parts.values() if part.resident)
        return result

    runs, assemble = [], trainer.assemble
    monkeypatch.setattr(trainer.Updater, "step", counted)
    monkeypatch.setattr(trainer, "assemble", lambda *given: runs.append(assemble(*given)) or runs[-1])
    generate(tmp_path / "clips", 4, seed=3)
    config = load_config(
        "lora",
        steps=6,  # both experts have been trained by then, and have moments
        clip={"frames": 5, "height": 48, "width": 32},
        data=tmp_path / "clips",
        out=tmp_path / "run",
        device="cpu",
        dtype="float32",
        model={"checkpoint": complete},
        loader={"batch": 1, "workers": 0, "silent_audio": "zeros"},
        lora={"rank": 4},
        validation={"every": 6, "data": tmp_path / "clips", "clips": 1, "samples": 1},
        log={"tensorboard": False},
    )
    assert Trainer(config).run() == 0
    job = Job(mova_config_from_folder(complete), "lora", "fp32", lora_rank=4)
    planned = memory(PlannedRun(job, policy=config.memory))
    assert held.pop("codecs") == 0
    assert held == {name: planned.device[name] for name in held}
    stages = {name: sum(parts.values()) for name, parts in runs[0].residency.report().stages.items()}
    beside = planned.stages[DECODE_VIDEO] - 2 * codecs["video_vae"]
    assert stages[ENCODE_TEXT] == planned.stages[ENCODE_TEXT] == 2 * codecs["text_encoder"]
    assert stages[ENCODE_CLIPS] == 2 * codecs["video_vae"] + 4 * codecs["audio_vae"]
    assert stages[DECODE_VIDEO] == planned.stages[DECODE_VIDEO] - beside
    assert stages[DECODE_AUDIO] == planned.stages[DECODE_AUDIO] - beside
