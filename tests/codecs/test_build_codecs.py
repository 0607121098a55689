"""The builders: unknown kinds, what a kind does not take, and packages that are not there."""

import importlib
from pathlib import Path

import pytest
import torch

from mova_engine.codecs import (
    AUDIO_CODECS,
    TEXT_ENCODERS,
    VIDEO_CODECS,
    build_audio_codec,
    build_text_encoder,
    build_video_codec,
)
from mova_engine.codecs.interface import optional
from mova_engine.config.model import PRESETS
from mova_engine.errors import MovaError


def test_unknown_kinds_name_the_nearest() -> None:
    with pytest.raises(MovaError, match="unknown video codec 'dtc'. Did you mean 'dct'.* Known: wan, dct"):
        build_video_codec("dtc")
    with pytest.raises(MovaError, match="unknown audio codec 'mdc'. Did you mean 'mdct'"):
        build_audio_codec("mdc")
    with pytest.raises(MovaError, match="unknown text encoder 'umt-5'. Did you mean 'umt5'"):
        build_text_encoder("umt-5", tokens=4, dim=8)


def test_every_preset_names_known_kinds() -> None:
    for config in PRESETS.values():
        assert config.video_codec in VIDEO_CODECS
        assert config.audio_codec in AUDIO_CODECS
        assert config.text_encoder in TEXT_ENCODERS


def test_what_a_kind_does_not_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MovaError, match="'dct' takes no folder"):
        build_video_codec("dct", tmp_path)
    with pytest.raises(MovaError, match="'mdct' takes no dtype, got torch.bfloat16"):
        build_audio_codec("mdct", dtype=torch.bfloat16)
    with pytest.raises(MovaError, match="'bytes' takes no folder"):
        build_text_encoder("bytes", tmp_path, tokens=4, dim=8)
    with pytest.raises(MovaError, match="'wan' takes no state"):
        build_video_codec("wan", tmp_path, state={"mean": [], "std": []})
    build_video_codec("dct", dtype=torch.float32, state={})


@pytest.mark.parametrize("kind, package", [("wan", "diffusers"), ("umt5", "transformers")])
def test_a_missing_package_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, package: str
) -> None:
    real = importlib.import_module

    def absent(name: str, *args: object) -> object:
        if name == package:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", absent)
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    with pytest.raises(MovaError, match=rf"'{kind}' needs the package {package}: pip install 'mova_engine\[codecs\]'"):
        if kind == "wan":
            build_video_codec(kind, tmp_path)
        else:
            build_text_encoder(kind, tmp_path, tokens=4, dim=8)


def test_a_package_without_the_class_is_named() -> None:
    with pytest.raises(MovaError, match=r"codec 'x' needs json\.Autoencoder, which this installation cannot give"):
        optional("json", "Autoencoder", "codec 'x'")
