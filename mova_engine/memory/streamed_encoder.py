"""A text encoder whose blocks are streamed from its files: UMT5's 11.4 GB in bf16 take the memory of its embedding
(2.1 GB) and of two blocks.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mova_engine.checkpoints.quantised_files import open_component, refuse_quantised
from mova_engine.codecs.umt5 import Umt5TextEncoder
from mova_engine.config.stages import TEXT_ENCODER
from mova_engine.files.tensors import load_component
from mova_engine.memory.residency import Part
from mova_engine.memory.streamed_model import without_modules
from mova_engine.memory.streaming import WeightStream
from mova_engine.memory.weight_sources import LayerUnit, StoredWeights

# The folder of the encoder in a model folder, and so the first part of its weights' names.
_FOLDER = "text_encoder"


def open_streamed_encoder(codec: Umt5TextEncoder, folder: Path, device: torch.device, dtype: torch.dtype) -> Part:
    """Let the blocks of `codec`, whose weights are on the meta device, be streamed from the model folder. Returns the
    part that stays on the device while prompts are encoded: embedding and last norm.

    A block's weights come before it runs; the slots' memory is given back after each call of the encoder.
    """
    component = open_component(folder / _FOLDER)
    refuse_quantised([component], "a text encoder streams plain weights")
    encoder: Any = codec.weights.to(dtype)
    blocks: Iterable[nn.Module] = encoder.encoder.block
    units = [LayerUnit.of({f"{_FOLDER}.encoder.block.{index}": block}) for index, block in enumerate(blocks)]
    stream = WeightStream(units, StoredWeights(units, {_FOLDER: component}, device), device)

    def enter(index: int) -> None:
        if not stream.planned:
            stream.plan(range(index, len(units)))
        stream.enter(index)

    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, index=index: enter(index))
    encoder.register_forward_hook(lambda *_: stream.free())
    rest = without_modules(encoder, {id(block) for block in blocks})
    wanted = {name for name, _ in rest.named_parameters(remove_duplicate=False)} & component.plain.keys()

    def read(at: torch.device) -> None:
        load_component(encoder, folder / _FOLDER, device=at, dtype=dtype, only=wanted)
        # One of the two names of the shared embedding is stored.
        found = encoder.shared if "shared.weight" in wanted else encoder.encoder.embed_tokens
        encoder.shared.weight = encoder.encoder.embed_tokens.weight = found.weight
        encoder.requires_grad_(False)

    return Part(TEXT_ENCODER, rest, read, "files")
