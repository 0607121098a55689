"""A complete folder, with the released kinds of codecs and text encoder at tiny sizes: fine-tune, save, use again."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.adapters.lora import adapted_layers, add_lora, save_lora
from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import load_codecs, load_mova, mova_config_from_folder, save_mova
from mova_engine.codecs.wan_tiles import Tiles
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS
from mova_engine.config.stages import EXPERTS
from mova_engine.errors import MovaError
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.ops import bind


def test_a_fine_tuned_model_keeps_its_codecs(complete, tmp_path, ops):
    mova = load_mova(complete, ops, device="cpu")
    with torch.no_grad():
        mova.audio_dit.head.head.bias.add_(1.0)
    save_mova(mova, tmp_path / "tuned", base=complete)
    before = load_codecs(complete)
    shutil.rmtree(complete)
    after = load_codecs(tmp_path / "tuned")
    assert [codec.name for codec in after] == ["wan", "dac", "umt5"]
    assert [codec.fingerprint() for codec in after] == [codec.fingerprint() for codec in before]
    again = load_mova(tmp_path / "tuned", ops, device="cpu")
    assert torch.equal(again.audio_dit.head.head.bias, mova.audio_dit.head.head.bias)
    index = json.loads((tmp_path / "tuned" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "T5TokenizerFast"]
    assert after.text.encode(["ball"]).shape == (1, mova.config.text_tokens, 32)


@pytest.fixture
def sampled(complete):
    """Clips of three prompts, then of one, by a pipeline that takes `memory`, and what was read from the folder."""

    def run(memory: MemoryConfig | None, batch_guidance: bool = True):
        """memory None: everything is loaded at once and stays."""
        backend = get_backend("cpu")
        pipeline = load_pipeline(complete, backend, memory=memory)
        if memory is None:
            # By the operators of the stored dtype, as the pipeline: on some CPUs bfloat16 too would take others.
            ops = bind(backend, training=False, dtypes=(torch.float32,))
            model = load_mova(complete, ops, device="cpu").requires_grad_(False)
            pipeline = replace(pipeline, mova=model, codecs=load_codecs(complete), residency=None)
        pipeline.options = replace(pipeline.options, batch_guidance=batch_guidance)
        requests = [Request(caption, seed) for seed, caption in enumerate(["ball", "", "ball"])]
        settings = SampleSettings(2)
        return pipeline, [*pipeline.generate(requests, settings, batch=2), *pipeline.generate(requests[:1], settings)]

    return run


@pytest.mark.parametrize(
    ("expert", "idle"),
    [
        ("device", "host"),
        ("host", "files"),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("device", "files"), ("host", "host"))),
        *(pytest.param(expert, "device", marks=pytest.mark.long) for expert in ("device", "host")),
    ],
)
def test_parts_that_come_and_go_change_no_bit_of_a_clip(sampled, expert, idle):
    staged, clips = sampled(MemoryConfig(expert=expert, idle=idle))
    for ours, theirs in zip(clips, sampled(None)[1], strict=True):
        assert np.array_equal(ours.video, theirs.video) and np.array_equal(ours.audio, theirs.audio)
    report = staged.residency.report()
    moving = {name for name, part in report.parts.items() if not part.resident}
    experts = {*EXPERTS} if expert == "host" else set()
    assert moving == ({"text_encoder", "video_vae", "audio_vae"} | experts if idle != "device" else experts)
    if idle != "files":
        assert all(part.read <= 1 for part in report.parts.values()), "a later call reads no file again"
    if idle != "device":
        assert report.parts["text_encoder"].loaded == 2, "once for each call, however many batches that has"
    if idle == "files":
        assert all(part.read >= 2 for name, part in report.parts.items() if name.endswith(("encoder", "vae")))
    if idle == "host":
        order = [event.part for event in report.events if event.what == "read"]
        towers = ["video_dit", "audio_dit", "dual_tower_bridge", "video_dit_2"]
        if expert == "host":  # read to the host first
            towers = ["audio_dit", "dual_tower_bridge"]
        assert order == ["text_encoder", "video_vae", *towers, "audio_vae"]
        assert not report.stages["encode text"].keys() & {*COMPONENTS}
    assert report.peak_bytes == max(sum(held.values()) for held in report.stages.values())
    assert report.peak_bytes < sum(part.bytes for part in report.parts.values()) or idle == "device"
    if expert == "host":
        arrivals = ("loaded", "read") if idle == "files" else ("loaded",)
        came = [event.part for event in report.events if event.what in arrivals and event.part in EXPERTS]
        # Two batches, then one, of a step by each expert: an expert comes for its steps alone.
        assert came == [*EXPERTS] * 3
    # Rotary tables go with the towers that made them.
    away = [module for name in moving & {*COMPONENTS} for module in getattr(staged.mova, name).modules()]
    assert not any(True for module in away for _ in module.buffers(recurse=False))


def test_nothing_is_read_before_its_stage_and_what_cannot_be_read_is_said_first(complete):
    staged = load_pipeline(complete, get_backend("cpu"))
    assert all(x.is_meta for module in (staged.mova, *(c.weights for c in staged.codecs)) for x in module.parameters())
    header = complete / "audio_vae" / "diffusion_pytorch_model.safetensors"
    header.write_bytes(header.read_bytes()[:100])
    with pytest.raises(MovaError, match="audio_vae"):
        load_pipeline(complete, get_backend("cpu"))
    shutil.rmtree(complete / "dual_tower_bridge")
    with pytest.raises(MovaError, match="dual_tower_bridge"):
        load_pipeline(complete, get_backend("cpu"))


@pytest.mark.parametrize("batch_guidance", [True, False])
def test_layers_that_are_read_one_by_one_change_no_bit_of_a_clip(sampled, complete, batch_guidance):
    # Evaluated alike: products of other numbers of rows may add up in another order.
    expected = sampled(None, batch_guidance=batch_guidance)[1]
    pipeline, clips = sampled(MemoryConfig(weights="files"), batch_guidance=batch_guidance)
    for ours, theirs in zip(clips, expected, strict=True):
        assert np.array_equal(ours.video, theirs.video) and np.array_equal(ours.audio, theirs.audio)
    report = pipeline.mova.streamed.stream.report()
    assert report.unforeseen == 0 and report.copies > 0
    # The text encoder keeps its embedding alone, while it encodes.
    encoder = pipeline.codecs.text.weights
    assert all(x.is_meta for x in encoder.parameters())
    text = pipeline.residency.report().parts["text_encoder"]
    assert text.loaded == 2 and 0 < text.bytes < sum(x.numel() * x.element_size() for x in encoder.parameters())
    # Between layers there is no weight of a block anywhere.
    pipeline.mova.streamed.stream.free()
    assert all(x.is_meta for x in pipeline.mova.video_dit.blocks.parameters())
    held = pipeline.residency.report().parts
    assert held["video_dit"].bytes < sum(x.numel() * 4 for x in pipeline.mova.video_dit.parameters())


def test_pictures_in_tiles_are_those_of_the_whole(complete):
    """Decoded, and encoded as the first frame is; a clip of one tile is refused before anything is read."""
    clip = replace(mova_config_from_folder(complete).clip, height=272, width=32)
    config = replace(mova_config_from_folder(complete), clip=clip)
    made, asked = [], []
    for vae in ("whole", "tiles"):
        options = {"dtype": torch.float32, "memory": MemoryConfig(vae=vae), "clip": clip, "config": config}
        pipeline = load_pipeline(complete, get_backend("cpu"), **options)
        asked.append(pipeline.codecs.video.tiles)
        made.append(next(pipeline.generate([Request("ball", 1)], SampleSettings(1))).video.astype(int))
    assert asked == [None, Tiles(32)]
    assert np.abs(made[0] - made[1]).max() <= 1 and made[0].std() > 1
    with pytest.raises(MovaError, match=r"memory.vae tiles: a clip of 48x32 has but one tile of 256 pixels"):
        load_pipeline(complete, get_backend("cpu"), memory=MemoryConfig(vae="tiles"))


def test_adapters_stay_while_the_layers_beside_them_come_and_go(complete, ops, tmp_path):
    mova = load_mova(complete, ops, device="cpu").requires_grad_(False)
    add_lora(mova, ("q", "ffn.0"), 4, 8.0, torch.Generator().manual_seed(0))
    for layer in adapted_layers(mova).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.1)
    save_lora(mova, tmp_path / "lora.safetensors")
    made = []
    for lora in ([], [AdapterSpec(tmp_path / "lora.safetensors", strength=0.5)]):
        for weights in ("device", "files"):
            memory = MemoryConfig(weights=weights)
            pipeline = load_pipeline(complete, get_backend("cpu"), dtype=torch.float32, memory=memory, lora=lora)
            made.append(next(pipeline.generate([Request("ball", 1)], SampleSettings(2))))
    plain, streamed, adapted, both = (clip.video for clip in made)
    assert np.array_equal(plain, streamed) and np.array_equal(adapted, both) and not np.array_equal(plain, adapted)


def test_a_text_encoder_that_does_not_stream_as_it_is_stored_is_refused(complete):
    """Codes of quantised weights are not taken for the weights, nor is what lies behind a shorter tensor."""
    file = complete / "text_encoder" / "model.safetensors"
    stored = load_file(file)
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    scale = {name + "_scale": torch.ones(len(stored[name]))}
    for changed, message in (
        ({name: stored[name].to(torch.int8), **scale}, "holds weights in int8"),
        ({name: stored[name][:, 1:].contiguous()}, "bytes, the model needs"),
    ):
        save_file({**stored, **changed}, file, {"format": "pt"})
        with pytest.raises(MovaError, match=message):
            load_pipeline(complete, get_backend("cpu"), memory=MemoryConfig(weights="files"))
