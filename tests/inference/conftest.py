"""A model small enough to sample in milliseconds, with two experts and weights that make every part matter."""

import shutil
from pathlib import Path

import pytest
import torch

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import Codecs, save_mova
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.inference.pipeline import Pipeline
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

TINY = MovaConfig(
    "tiny",
    VideoDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    AudioDiTConfig(dim=24, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16, freq_dim=16),
    BridgeConfig(2, 2, 24, 24, head_dim=24),
    ClipConfig(frames=9, height=32, width=48),
    experts=2,
    text_tokens=12,
    video_codec="dct",
    audio_codec="mdct",
    text_encoder="bytes",
)


def build() -> Pipeline:
    """Random weights everywhere: those for training start with zeros that would hide text, bridge and head."""
    model = Mova(TINY, bind(get_backend("cpu")))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.5 if name.endswith("bias") else 1.5 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 1.0
            parameter.normal_(0.0, size, generator=generator)
    text = build_text_encoder("bytes", tokens=TINY.text_tokens, dim=TINY.video.text_dim)
    return Pipeline(model, Codecs(build_video_codec("dct"), build_audio_codec("mdct"), text))


@pytest.fixture
def pipeline() -> Pipeline:
    return build()


@pytest.fixture
def mova(pipeline) -> Mova:
    return pipeline.mova


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory) -> Path:
    """A training run's folder with two checkpoints, the newer one of `build`'s model, the older one of nothing."""
    run, pipeline = tmp_path_factory.mktemp("sample") / "run", build()
    (run / "checkpoints" / "step-000020").mkdir(parents=True)
    folder = run / "checkpoints" / "step-000100"
    codecs = {"video_codec": pipeline.codecs.video, "audio_codec": pipeline.codecs.audio}
    shifts, output = {"video_shift": 3.0, "audio_shift": 2.0}, {"prediction_type": "x0", "sigma_floor": 0.25}
    diffusion = {**shifts, **output, "skip_first_frame": True, "bridge": True, "start_frames": 9}
    save_mova(pipeline.mova, folder, **codecs, boundary=0.8, diffusion=diffusion)
    return run


@pytest.fixture
def run_folder(saved_run, tmp_path) -> Path:
    """A copy of `saved_run` to spoil."""
    return shutil.copytree(saved_run, tmp_path / "run")
