"""A model small enough to sample in milliseconds, with two experts and weights that make every part matter."""

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.config import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.models.checkpoint import Codecs
from mova_engine.models.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.models.mova import Mova
from mova_engine.ops import bind
from mova_engine.sample.pipeline import Pipeline

TINY = MovaConfig(
    "tiny",
    VideoDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    AudioDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    BridgeConfig(2, 2, 24, 24, head_dim=24),
    ClipConfig(frames=9, height=32, width=48),
    experts=2,
    text_tokens=8,
    video_codec="dct",
    audio_codec="mdct",
    text_encoder="bytes",
)


@pytest.fixture
def mova() -> Mova:
    """Random weights everywhere: those for training start with zeros that would hide text, bridge and head."""
    model = Mova(TINY, bind(get_backend("cpu")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.5 if name.endswith("bias") else 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.normal_(0.0, size, generator=generator)
    return model


@pytest.fixture
def pipeline(mova) -> Pipeline:
    text = build_text_encoder("bytes", tokens=TINY.text_tokens, dim=TINY.video.text_dim)
    return Pipeline(mova, Codecs(build_video_codec("dct"), build_audio_codec("mdct"), text))
