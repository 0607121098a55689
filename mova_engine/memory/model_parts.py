"""A model's towers, codecs and text encoder as the `Part`s that a `Residency` moves to and from the device."""

from collections.abc import Callable
from functools import partial
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
    """Return a `Part` for each codec that is not None. Their weights are on the host or not read yet.

    folder: checkpoint folder that pretrained weights are read from; None: they cannot be read again.
    dtype: dtype of weights that are read. text_waits, vaes_wait: where the weights are between stages.
    """

    def reader(folder: Path, field: str) -> Callable[[torch.device], None]:
        def read(device: torch.device) -> None:
            loaded = load_codecs(folder, weights_on=device, dtype=dtype, parts=(field,))
            getattr(codecs, field).weights = getattr(loaded, field).weights

        return read

    def part(name: str, field: str, waits: Waits) -> Part:
        codec = getattr(codecs, field)
        pretrained = codec is not None and codec.weights is not None
        return Part(name, codec, reader(folder, field) if pretrained and folder is not None else None, waits)

    parts = [
        part(TEXT_ENCODER, "text", text_waits),
        part(VIDEO_VAE, "video", vaes_wait),
        part(AUDIO_VAE, "audio", vaes_wait),
    ]
    return [part for part in parts if part.value is not None]


def tower_parts(mova: Mova, read: Callable[[str, torch.device], None] | None, waits: Waits = "host") -> list[Part]:
    """Return a `Part` for each component that the model has.

    read(name, device): reads the component `name` from its files onto `device`. None: all components are on the device
    and stay there.
    """

    def part(name: str) -> Part:
        module = getattr(mova, name)
        if read is None:
            return Part(name, module, stays=True)
        return Part(name, module, partial(read, name), waits)

    return [part(name) for name in COMPONENTS if getattr(mova, name) is not None]
