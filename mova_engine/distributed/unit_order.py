"""In which order FSDP's units run in a step, and which of them are gathered ahead (`MemoryConfig.prefetch`).

By itself FSDP2 gathers a unit while the two before it run, and in the backward while one does. A layer of two towers
and a bridge has a large unit, the video block, and up to three small ones, which compute too little to cover it.
So units are gathered a layer ahead: in the forward from video block to video block, in the backward layer by layer.
"""

from collections.abc import Collection
from itertools import pairwise
from typing import Any

import torch.nn as nn

from mova_engine.models.layers import Block
from mova_engine.models.mova import Mova


def running_layers(model: Mova, idle: Collection[nn.Module] = ()) -> list[list[Any]]:
    """The units of each layer that a step runs, in the order of the forward. idle: components that it does not use; of
    two experts that are not idle the first is taken.
    """
    bridge = model.dual_tower_bridge
    layers: list[list[Any]] = []
    for layer in range(max(len(blocks) for blocks in _blocks(model, idle))):
        units: list[Any] = []
        if bridge is not None and bridge not in idle and layer in bridge.config.layers:
            conditioners: tuple[Any, ...] = (bridge.audio_to_video_conditioners, bridge.video_to_audio_conditioners)
            units += [way[bridge.names[layer]].inner for way in conditioners]
        layers.append(units + [blocks[layer] for blocks in _blocks(model, idle) if layer < len(blocks)])
    return layers


def gathered_ahead(layers: list[list[Any]]) -> tuple[dict[Any, list[Any]], dict[Any, list[Any]]]:
    """By unit those that are gathered as soon as it has been gathered: in the forward, in the backward. What is not
    among the keys leaves it to FSDP. layers: as of `running_layers`.

    In the forward the unit after a video block asks for all up to the next one. The host is ahead of the device: what
    is asked for then begins to travel when the video block begins, whose gathered copy is given back by then. In
    the backward a layer's first unit asks for the layer before: those weights travel before this layer's gradients.
    """
    order = [unit for units in layers for unit in units]
    forward: dict[Any, list[Any]] = {}
    # A layer's first block is the video's, or its only one.
    blocks = [order.index(next(unit for unit in units if isinstance(unit, Block))) for units in layers]
    for block, following in pairwise(blocks):
        if following > block + 1:
            forward[order[block + 1]] = order[block + 2 : following + 1]
    backward = {units[-1]: before[::-1] for before, units in pairwise(layers)}
    return forward, backward


def _blocks(model: Mova, idle: Collection[nn.Module]) -> list[list[Any]]:
    """Blocks of the video expert and of the audio tower, as far as they run."""
    video = next((x for x in (model.video_dit, model.video_dit_2) if x is not None and x not in idle), None)
    audio = model.audio_dit if model.audio_dit not in idle else None
    return [[] if tower is None else list(tower.blocks) for tower in (video, audio)]
