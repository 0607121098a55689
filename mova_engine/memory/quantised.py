"""Which layers hold their frozen weights quantised, and bringing weights into such a format in place.

These are the linear layers of blocks and of the bridge's conditioners, where nearly all weights are. Embeddings of
patches, text and time, modulations, norms and the head stay as they are: they are small, and errors there reach every
token. A quantised weight cannot be trained. An adapter of its layer keeps the dtype of the layer's bias.
"""

from collections.abc import Iterable

import torch
import torch.nn as nn

from mova_engine.errors import MovaError
from mova_engine.models.layers import Linear
from mova_engine.models.weight_formats import WeightFormat


def quantisable(module: nn.Module, weight_format: WeightFormat) -> list[str]:
    """The names of the layers of a model or a component that can hold their weights in a format, by their sizes."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, Linear) and weight_format.fits(layer.out_features, layer.in_features)
    ]


def linear_names(module: nn.Module) -> list[str]:
    """The names of all linear layers of a component, of whatever kind."""
    return [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def left_plain(module: nn.Module, weight_format: WeightFormat) -> list[str]:
    """The names of the linear layers of blocks and conditioners that cannot hold their weights in a format, by their
    sizes: they stay as they are.
    """
    fit = set(quantisable(module, weight_format))
    return [name for name in linear_names(module) if name not in fit and within_layers(name)]


def check_fits(module: nn.Module, weight_format: WeightFormat, what: str) -> None:
    """MovaError where no layer can hold its weights in the format that `what`, a setting or a folder, asks for."""
    if not quantisable(module, weight_format):
        first, (o, i) = left_plain(module, weight_format)[0], weight_format.multiples
        shape = list(module.get_parameter(f"{first}.weight").shape)
        raise MovaError(
            f"{what}: no layer fits {weight_format.name}, which takes weights [outputs, inputs] in multiples of {o} "
            f"and {i}; {first} is {shape}"
        )


def within_layers(name: str) -> bool:
    """Whether a module of a component, by its name, belongs to a block or a conditioner."""
    return "blocks." in name or "conditioners." in name


@torch.no_grad()
def hold_weights(module: nn.Module, weight_format: WeightFormat, names: Iterable[str] | None = None) -> list[str]:
    """Convert the weights of layers to a format; return their names. Adapters may be added before or after.

    names: of `Linear` layers; None: all that are `quantisable`. Raises MovaError where a weight is trained, of sizes
    that the format does not take, or quantised already; no layer is changed then.
    """
    found: dict[str, Linear] = {}
    for name in quantisable(module, weight_format) if names is None else names:
        layer = module.get_submodule(name)
        assert isinstance(layer, Linear), "other layers are not quantised"
        if layer.weight_format is not None:
            raise MovaError(f"{name} is held in {layer.weight_format.name} already")
        if layer.weight.requires_grad:
            raise MovaError(
                f"{name} is trainable: only frozen weights can be held in {weight_format.name}; freeze it first"
            )
        if not weight_format.fits(layer.out_features, layer.in_features):
            o, i = weight_format.multiples
            raise MovaError(
                f"{name} is {list(layer.weight.shape)}: {weight_format.name} takes sizes that are multiples of "
                f"{o} and {i}; leave it out"
            )
        found[name] = layer
    assert weight_format.quantise is not None, "weights are brought into formats that can be written"
    for layer in found.values():
        layer.hold(weight_format, weight_format.quantise(layer.weight))
    return list(found)
