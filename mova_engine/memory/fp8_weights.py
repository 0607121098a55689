"""Frozen linear layers whose weights are stored in fp8: half the memory of bfloat16, for training adapters on one card.

Such a weight is float8_e4m3fn with a float32 scale for each output row. It cannot be trained, saved, or merged with an
adapter. An adapter of the layer keeps the dtype that the layer had.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn as nn

from mova_engine.adapters.lora import find_linears
from mova_engine.errors import MovaError
from mova_engine.models.layers import Linear

# The fp8 products of GPUs take sizes that are multiples of this.
_MULTIPLE = 16


@torch.no_grad()
def hold_in_fp8(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Convert the weights of the linear layers that `targets` match (see `find_linears`) to fp8; return their names.

    The weights must be frozen (`model.requires_grad_(False)`) and their sizes multiples of 16. Adapters may be added
    before or after. Raises MovaError if a weight cannot be converted; no layer is changed then.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in find_linears(model, targets)}
    for name, layer in layers.items():
        if layer.weight_scale is not None:
            raise MovaError(f"{name} is held in fp8 already")
        if layer.weight.requires_grad:
            raise MovaError(f"{name} is trainable: only frozen weights can be held in fp8; freeze it first")
        if any(size % _MULTIPLE for size in layer.weight.shape):
            sizes = list(layer.weight.shape)
            raise MovaError(f"{name} is {sizes}: fp8 takes sizes that are multiples of {_MULTIPLE}; leave it out")
    for layer in layers.values():
        _hold(layer)
    return list(layers)


def _hold(layer: Linear) -> None:
    values, scale = layer.ops.quantize_rows(layer.weight)
    layer.weight = nn.Parameter(values, requires_grad=False)
    layer.weight_scale = scale.squeeze(1)
