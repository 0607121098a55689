"""A model's towers, codecs and text encoder as parts that come to the device for their stages and leave it again."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from mova_engine.checkpoints.folder import Codecs, load_codecs
from mova_engine.config.model import COMPONENTS
from mova_engine.config.stages import AUDIO_VAE, TEXT_ENCODER, VIDEO_VAE
from mova_engine.memory.residency import Part
from mova_engine.models.mova import Mova

Waits = Literal["host", "files"]


def codec_parts(
    codecs: Codecs,
    folder: Path | None = None,
    dtype: torch.dtype | None = None,
    *,
    text_waits: Waits = "host",
    vaes_wait: Waits = "host",
) -> list[Part]:
    """Parts of the codecs that there are; they lie on the host, or are yet to be read.

    folder, dtype: what pretrained ones are read from, and in. text_waits, vaes_wait: where they are between stages.
    """

    def part(name: str, field: str, waits: Waits) -> Part:
        codec = getattr(codecs, field)

        def read(device: torch.device) -> None:
            again = load_codecs(folder, weights_on=device, dtype=dtype, parts=(field,))
            codec.weights = getattr(again, field).weights

        pretrained = folder is not None and codec is not None and codec.weights is not None
        return Part(name, codec, read if pretrained else None, waits)

    parts = [
        part(TEXT_ENCODER, "text", text_waits),
        part(VIDEO_VAE, "video", vaes_wait),
        part(AUDIO_VAE, "audio", vaes_wait),
    ]
    return [part for part in parts if part.value is not None]


def tower_parts(mova: Mova, read: Callable[[str, torch.device], None] | None, waits: Waits = "host") -> list[Part]:
    """Parts of the model's components. read(name, device): reads one from its files; None: all lie on the device, and
    stay there.
    """

    def part(name: str) -> Part:
        module = getattr(mova, name)
        if read is None:
            return Part(name, module, stays=True)
        return Part(name, module, lambda device: read(name, device), waits)

    return [part(name) for name in COMPONENTS if getattr(mova, name) is not None]
