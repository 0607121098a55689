"""The recorded reference weights, and MOVA folders written from them."""

import json
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import save_mova
from mova_engine.codecs.dac import Dac, DacConfig
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


@pytest.fixture(scope="session")
def pretrained_codecs(tmp_path_factory) -> Path:
    """A folder of video_vae, audio_vae, text_encoder and tokenizer as their own packages save them."""
    for package in ("diffusers", "transformers", "tokenizers", "ftfy"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra [codecs])")
    from diffusers import AutoencoderKLWan
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    folder = tmp_path_factory.mktemp("codecs")
    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(folder / "video_vae")
    dac = Dac(DacConfig(encoder_dim=2, encoder_rates=(2, 3), latent_dim=128, decoder_dim=8, decoder_rates=(3, 2)))
    (folder / "audio_vae").mkdir()
    (folder / "audio_vae" / "config.json").write_text(json.dumps({"_class_name": "DAC", **asdict(dac.config)}))
    save_file(dac.state_dict(), folder / "audio_vae" / "diffusion_pytorch_model.safetensors")
    config = UMT5Config(vocab_size=8, d_model=32, d_kv=4, d_ff=24, num_layers=1, num_heads=2)
    UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "ball": 3}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture
def complete(tiny_folder, pretrained_codecs) -> Path:
    """The tiny checkpoint with those codecs: a copy that a test may spoil."""
    shutil.copytree(pretrained_codecs, tiny_folder, dirs_exist_ok=True)
    index = json.loads((tiny_folder / "model_index.json").read_text())
    index |= {
        "video_vae": ["diffusers", "AutoencoderKLWan"],
        "audio_vae": ["mova.diffusion.models.dac_vae", "DAC"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
    }
    (tiny_folder / "model_index.json").write_text(json.dumps(index))
    return tiny_folder
