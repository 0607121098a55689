"""A folder of a small model with many layers, most of whose weights come and go where layers are streamed."""

from dataclasses import replace
from pathlib import Path

import torch

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.codecs import build_audio_codec, build_video_codec
from mova_engine.config.model import BridgeConfig, MovaConfig, get_preset
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

_LAYERS = 10
_NANO = get_preset("nano")
DEEP = replace(
    _NANO,
    name="deep",
    video=replace(_NANO.video, num_layers=_LAYERS),
    audio=replace(_NANO.audio, num_layers=_LAYERS),
    bridge=BridgeConfig(_LAYERS, _LAYERS, _NANO.video.dim, _NANO.audio.dim, head_dim=48),
)


def save_deep(folder: Path, sizes: MovaConfig = DEEP) -> Path:
    """Write a model with random weights into `folder`, as one of the nano recipe's training, and return it."""
    model, generator = Mova(sizes, bind(get_backend("cpu"))), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.05, generator=generator)
    codecs = {"video_codec": build_video_codec("dct"), "audio_codec": build_audio_codec("mdct")}
    diffusion = {"prediction_type": "x0", "sigma_floor": 0.25, "skip_first_frame": True, "bridge": True}
    save_mova(model, folder, **codecs, boundary=0.9, diffusion={"video_shift": 3.0, "audio_shift": 2.0, **diffusion})
    return folder
