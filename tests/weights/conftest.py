"""The recorded reference weights, and MOVA folders written from them."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from safetensors.torch import load_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

TINY = {
    "video_dit": "weights_tiny_video_dit",
    "video_dit_2": "weights_tiny_video_dit_2",
    "audio_dit": "weights_tiny_audio_dit",
    "dual_tower_bridge": "weights_tiny_bridge",
}


@pytest.fixture(scope="session")
def golden(repo_root) -> Path:
    """The folder of recorded cases."""
    return repo_root / "tests" / "data" / "golden"


@pytest.fixture(scope="session")
def ops():
    return bind(get_backend("cpu"))


@pytest.fixture(scope="session")
def recorded(golden) -> dict[str, Path]:
    """The recorded weights of each component; the .json beside each has its configuration."""
    return {component: golden / f"{file}.safetensors" for component, file in TINY.items()}


def dataclass_from(kind, values):
    names = {field.name for field in fields(kind)} & set(values)
    return kind(**{name: tuple(v) if isinstance(v := values[name], list) else v for name in names})


@pytest.fixture(scope="session")
def tiny_config(golden) -> MovaConfig:
    """The model of golden case 9: one layer, head dim 128, two experts."""
    config = json.loads((golden / "case9_lora.json").read_text())["config"]
    return MovaConfig(
        "tiny",
        dataclass_from(VideoDiTConfig, config["video"]),
        dataclass_from(AudioDiTConfig, config["audio"]),
        dataclass_from(BridgeConfig, config["bridge"]),
        ClipConfig(frames=5, height=48, width=32),
        text_tokens=5,
    )


@pytest.fixture
def tiny(recorded, tiny_config, ops) -> Mova:
    """That model with the recorded weights, loaded without our own loader."""
    mova = Mova(tiny_config, ops)
    for component, file in recorded.items():
        getattr(mova, component).load_state_dict(load_file(file))
    return mova


@pytest.fixture
def tiny_folder(tiny, tmp_path) -> Path:
    """A checkpoint folder of it."""
    folder = tmp_path / "tiny"
    save_mova(tiny, folder)
    return folder
