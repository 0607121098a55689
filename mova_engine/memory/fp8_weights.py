"""Frozen linear layers held in fp8: half the memory of bfloat16, for training adapters on one card.

A held weight is float8_e4m3fn with a float32 scale for each output row. It is neither trained, nor saved, nor merged
with an adapter; the adapter beside it stays in the layer's own dtype.
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
    """Hold the weights of the linear layers that `targets` mean (see `find_linears`) in fp8; returns their names.

    They must be frozen (`model.requires_grad_(False)`), and of sizes that are multiples of 16. Adapters may be added
    before or after. Raises MovaError for what cannot be held; then nothing is changed.
    """
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in find_linears(model, targets)}
    for name, layer in layers.items():
        if layer.weight_scale is not None:
            raise MovaError(f"{name} is held in fp8 already")
        if layer.weight.requires_grad:
            raise MovaError(f"{name} is trained: only frozen weights can be held in fp8; freeze it first")
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
