"""Codecs and text encoders: what turns pictures, sound and words into what the towers see, and back.

| | kind | what it is | needs |
|---|---|---|---|
| video | wan | diffusers' AutoencoderKLWan | folder, extra [codecs] |
| | dct | low-frequency DCT of 4x8x8 blocks | |
| audio | dac | MOVA's continuous DAC | folder |
| | mdct | 128 MDCT coefficients for every 960 samples | |
| text | umt5 | transformers' UMT5 encoder and its tokenizer | folder, extra [codecs] |
| | bytes | one fixed vector a word | |

`folder` is the codec's own (a checkpoint's video_vae or audio_vae); for umt5 it is the one that holds both text_encoder
and tokenizer, that is, the checkpoint's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mova_engine.codecs.dac import DacCodec, load_dac
from mova_engine.codecs.interface import AudioCodec, TextEncoder, VideoCodec, video_from_uint8, video_to_uint8
from mova_engine.codecs.toy.byte_text import ByteTextEncoder
from mova_engine.codecs.toy.dct_video import DctVideoCodec
from mova_engine.codecs.toy.mdct_audio import MdctAudioCodec
from mova_engine.codecs.umt5 import load_umt5
from mova_engine.codecs.wan import WanVideoCodec, load_wan
from mova_engine.errors import MovaError, suggest

__all__ = [
    "VIDEO_CODECS",
    "AUDIO_CODECS",
    "TEXT_ENCODERS",
    "build_video_codec",
    "build_audio_codec",
    "build_text_encoder",
    "VideoCodec",
    "AudioCodec",
    "TextEncoder",
    "DctVideoCodec",
    "MdctAudioCodec",
    "ByteTextEncoder",
    "video_from_uint8",
    "video_to_uint8",
]

VIDEO_CODECS = ("wan", "dct")
AUDIO_CODECS = ("dac", "mdct")
TEXT_ENCODERS = ("umt5", "bytes")


def build_video_codec(
    kind: str,
    folder: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Any] | None = None,
) -> VideoCodec:
    """Return a video codec: "dct", restored from `state`, or "wan" from its `folder`, run in `dtype`.

    dtype: by default bfloat16 for "wan", as the reference runs it; "dct" knows float32 alone. Raises MovaError for an
    unknown kind, a missing folder, and what the kind does not take.
    """
    _check_kind("video codec", kind, VIDEO_CODECS)
    what = f"video codec '{kind}'"
    if kind == "dct":
        _refuse(what, folder=folder, dtype=_not_float32(dtype))
        return DctVideoCodec(state, device)
    _refuse(what, state=state or None)
    return WanVideoCodec(load_wan(_given(what, folder), device, dtype or torch.bfloat16))


def build_audio_codec(
    kind: str,
    folder: str | Path | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    state: Mapping[str, Any] | None = None,
) -> AudioCodec:
    """Return an audio codec: "mdct", restored from `state`, or "dac" from its `folder`, run in `dtype`.

    dtype: float32 by default; "mdct" knows no other. Raises MovaError for an unknown kind, a missing folder, and what
    the kind does not take.
    """
    _check_kind("audio codec", kind, AUDIO_CODECS)
    what = f"audio codec '{kind}'"
    if kind == "mdct":
        _refuse(what, folder=folder, dtype=_not_float32(dtype))
        return MdctAudioCodec(state, device)
    _refuse(what, state=state or None)
    return DacCodec(load_dac(_given(what, folder), device, dtype or torch.float32))


def build_text_encoder(
    kind: str,
    folder: str | Path | None = None,
    *,
    tokens: int,
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TextEncoder:
    """Return a text encoder that gives [b, tokens, dim] in `dtype`: "bytes", or "umt5" from `folder`.

    dtype: by default float32 for "bytes", bfloat16 for "umt5". Raises MovaError for an unknown kind, a missing folder,
    a folder that the kind does not take, and weights that give another width than `dim`.
    """
    _check_kind("text encoder", kind, TEXT_ENCODERS)
    what = f"text encoder '{kind}'"
    if kind == "bytes":
        _refuse(what, folder=folder)
        return ByteTextEncoder(tokens, dim, device, dtype)
    folder = _given(what, folder)
    encoder = load_umt5(folder / "text_encoder", folder / "tokenizer", tokens, device, dtype or torch.bfloat16)
    if encoder.dim != dim:
        raise MovaError(f"{what} in {folder} gives {encoder.dim} features, the model needs {dim}")
    return encoder


def _check_kind(what: str, kind: str, known: tuple[str, ...]) -> None:
    if kind not in known:
        raise MovaError(f"unknown {what} '{kind}'.{suggest(kind, known)} Known: {', '.join(known)}")


def _refuse(what: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise MovaError(f"{what} takes no {name}, got {value}")


def _not_float32(dtype: torch.dtype | None) -> torch.dtype | None:
    return None if dtype == torch.float32 else dtype


def _given(what: str, folder: str | Path | None) -> Path:
    if folder is None:
        raise MovaError(f"{what} is loaded from a folder, and none was given")
    if not Path(folder).is_dir():
        raise MovaError(f"{what}: {folder} is not a folder")
    return Path(folder)
