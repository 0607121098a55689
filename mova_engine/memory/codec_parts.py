"""The codecs and the text encoder as parts that come to the device for a stage and leave it again."""

from pathlib import Path

import torch
from torch import nn

from mova_engine.checkpoints.folder import Codecs, load_codecs
from mova_engine.memory.residency import Part

TEXT_ENCODER, VIDEO_VAE, AUDIO_VAE = "text_encoder", "video_vae", "audio_vae"


def codec_parts(codecs: Codecs, folder: Path | None = None, dtype: torch.dtype | None = None) -> list[Part]:
    """Parts of the codecs that there are, on the host.

    folder, dtype: what they were loaded from, and in. A pretrained text encoder (11.4 GB) is dropped when its stage is
    over and loaded from there again; the autoencoders (2 GB) wait in the host's memory.
    """

    def reload(device: torch.device) -> nn.Module:
        return load_codecs(folder, device=device, dtype=dtype, parts=("text",)).text.weights

    droppable = folder is not None and codecs.text is not None and codecs.text.weights is not None
    parts = [
        Part(TEXT_ENCODER, codecs.text, reload if droppable else None),
        Part(VIDEO_VAE, codecs.video),
        Part(AUDIO_VAE, codecs.audio),
    ]
    return [part for part in parts if part.value is not None]
