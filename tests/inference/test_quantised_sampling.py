"""Sampling from quantised folders, and with weights that are quantised when they are read."""

import numpy as np
import pytest
import torch

from mova_engine.adapters.lora import linear_layers
from mova_engine.backend import get_backend
from mova_engine.checkpoints.locate import find_model
from mova_engine.config.memory import MemoryConfig
from mova_engine.diffusion.guidance import Guidance
from mova_engine.errors import MovaError
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.memory.quantise_folder import quantise_folder

SETTINGS = SampleSettings(2, Guidance("none"))


@pytest.fixture(scope="module")
def quantised(saved_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("quantised") / "int8"
    quantise_folder(saved_run, out, "int8")
    return out


def clip_of(folder, **options):
    pipeline = load_pipeline(find_model(folder), get_backend("cpu"), **options)
    return pipeline, only(pipeline)


def only(pipeline):
    (clip,) = pipeline.generate([Request("rain", 7)], SETTINGS)
    return clip


def test_resident_and_streamed_give_one_clip_and_weights_quantised_on_load_nearly_that(saved_run, quantised):
    pipeline, resident = clip_of(quantised)
    assert pipeline.mova.audio_dit.dtype == torch.bfloat16
    assert {x.weight_format.name for x in linear_layers(pipeline.mova).values()} == {"int8"}
    _, streamed = clip_of(quantised, memory=MemoryConfig(weights="files"))
    assert np.array_equal(resident.video, streamed.video) and np.array_equal(resident.audio, streamed.audio)
    # From float32 weights by way of bfloat16, the activations' dtype; each part is read again when its stage comes.
    pipeline, on_load = clip_of(saved_run, memory=MemoryConfig(frozen="int8", idle="files"))
    assert {x.weight_format.name for x in linear_layers(pipeline.mova).values()} == {"int8"}
    again = only(pipeline)
    assert np.array_equal(on_load.video, again.video)
    assert np.abs(on_load.audio - resident.audio).mean() < 0.1 * np.abs(resident.audio).mean()


def test_what_cannot_be_sampled_is_refused_by_name(saved_run, quantised, tmp_path):
    with pytest.raises(MovaError, match=r"memory.frozen fp8: .*video_dit is in int8 already; leave memory.frozen out"):
        clip_of(quantised, memory=MemoryConfig(frozen="fp8"))
    with pytest.raises(MovaError, match="memory.frozen nf4: layers that come one by one come as their files have them"):
        clip_of(saved_run, memory=MemoryConfig(frozen="nf4", weights="files"))
    with pytest.raises(MovaError, match="weights in fp8 compute in bfloat16, not in float32"):
        clip_of(saved_run, memory=MemoryConfig(frozen="fp8"), dtype=torch.float32)
    file = next((quantised / "audio_dit").glob("*.safetensors"))
    kept = file.read_bytes()
    try:
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
        with pytest.raises(MovaError, match="is damaged: audio_dit/.* has other bytes than were written"):
            Pipeline.from_pretrained(quantised, "cpu")
    finally:
        file.write_bytes(kept)
