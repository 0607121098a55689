"""Codecs and text encoders: what turns pictures, sound and words into what the towers see, and back.

kind         what it is                                                    needs
video  wan   diffusers' AutoencoderKLWan                                   folder, extra [codecs]
       dct   low-frequency DCT of 4x8x8 blocks                             nothing
audio  dac   MOVA's continuous DAC                                         folder
       mdct  128 MDCT coefficients a frame                                 nothing
text   umt5  transformers' UMT5 encoder and its tokenizer                  folder, extra [codecs]
       bytes one fixed vector a word                                       nothing
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mova_engine.errors import MovaError, suggest
from mova_engine.models.codecs.base import AudioCodec, TextEncoder, VideoCodec, video_from_uint8, video_to_uint8
from mova_engine.models.codecs.byte_text import ByteTextEncoder
from mova_engine.models.codecs.dct_video import DctVideoCodec
from mova_engine.models.codecs.mdct_audio import MdctAudioCodec

__all__ = [
    "AudioCodec",
    "ByteTextEncoder",
    "DctVideoCodec",
    "MdctAudioCodec",
    "TextEncoder",
    "VideoCodec",
    "build_audio_codec",
    "build_text_encoder",
    "build_video_codec",
    "video_from_uint8",
    "video_to_uint8",
]

State = Mapping[str, Any]
Folder = str | Path


def build_video_codec(
    kind: str,
    folder: Folder | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    state: State | None = None,
) -> VideoCodec:
    """Return the video codec `kind`: "dct" (restored from `state`), or "wan" loaded from `folder`, run in `dtype`.

    Raises MovaError for an unknown kind, and for a folder or state that the kind does not take or is lacking.
    """
    _check_kind("video codec", kind, ("dct",))
    _refuse("video codec 'dct'", folder=folder, dtype=dtype)
    return DctVideoCodec(state, device)


def build_audio_codec(
    kind: str,
    folder: Folder | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    state: State | None = None,
) -> AudioCodec:
    """Return the audio codec `kind`: "mdct" (restored from `state`), or "dac" loaded from `folder`, run in `dtype`.

    Raises MovaError for an unknown kind, and for a folder or state that the kind does not take or is lacking.
    """
    _check_kind("audio codec", kind, ("mdct",))
    _refuse("audio codec 'mdct'", folder=folder, dtype=dtype)
    return MdctAudioCodec(state, device)


def build_text_encoder(
    kind: str,
    folder: Folder | None = None,
    *,
    tokens: int,
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> TextEncoder:
    """Return the text encoder `kind`, giving [b, tokens, dim]: "bytes", or "umt5" loaded from `folder`.

    Raises MovaError for an unknown kind, a folder that the kind does not take or is lacking, and another width.
    """
    _check_kind("text encoder", kind, ("bytes",))
    _refuse("text encoder 'bytes'", folder=folder)
    return ByteTextEncoder(tokens, dim, device, dtype)


def _check_kind(what: str, kind: str, known: Iterable[str]) -> None:
    if kind not in known:
        raise MovaError(f"unknown {what} '{kind}'.{suggest(kind, known)} Known: {', '.join(known)}")


def _refuse(what: str, **given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise MovaError(f"{what} takes no {name}, got {value}")
