"""Extracts the difference of two models as an adapter: `mova lora extract`. Holds one tensor at a time in memory."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mova_engine.adapters.form import Adapter, LowRank, check_finite
from mova_engine.adapters.layer_names import full_name
from mova_engine.adapters.low_rank import approximated
from mova_engine.adapters.reading import base_of
from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.locate import find_model
from mova_engine.checkpoints.quantised_files import open_component, refuse_quantised
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_stored, stored_tensors


@dataclass(frozen=True)
class Extracted:
    """The result. error: of all layers together, relative to the norm of their change. worst: the layer with the
    greatest relative error, and that error. left: norm of the changes of other parameters, if they are left out.
    """

    adapter: Adapter
    error: float
    worst: tuple[str, float]
    left: float


@torch.no_grad()
def extract(
    base: str | Path,
    tuned: str | Path,
    rank: int,
    *,
    deltas: bool = True,
    say: Callable[[str], object] = lambda _: None,
) -> Extracted:
    """Return the adapter of rank at most `rank` that turns the model `base` into `tuned` most nearly. Both are model
    folders or training runs.

    deltas: keep changes of norms, biases and modulations as full differences. say: called with the layer being worked
    on. Raises MovaError for models that differ in more than their weights, that are equal, or that hold values that are
    not finite.
    """
    if rank < 1:
        raise MovaError(f"rank must be at least 1, got {rank}")
    first, second = find_model(base), find_model(tuned)
    layers: dict[str, LowRank] = {}
    differences: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    whole: list[float] = []
    left: list[float] = []
    if listed_components(first) != listed_components(second):
        raise MovaError(f"{first} and {second} do not have the same components")
    for component in listed_components(first):
        refuse_quantised(
            (open_component(x / component) for x in (first, second)), "a change is found between plain weights"
        )
        one, other = stored_tensors(first / component), stored_tensors(second / component)
        odd = sorted(name for name in {*one, *other} if name not in one or name not in other)
        odd += [name for name in one if name in other and one[name].shape != other[name].shape]
        if odd:
            raise MovaError(f"{first} and {second} are of different sizes: see {component}.{odd[0]}")
        for name in one:
            change = read_stored(other[name], name).float() - read_stored(one[name], name).float()
            check_finite(f"{component}.{name}", change, second)
            norm = float(change.norm())
            if norm == 0:
                continue
            layer = full_name(name.removesuffix(".weight"), component) if name.endswith(".weight") else None
            if layer is None:
                left.append(norm)
                if deltas:
                    differences[f"{component}.{name}"] = change
                continue
            say(layer)
            layers[layer] = approximated(change, rank, zlib.crc32(layer.encode()))
            errors[layer] = float((change - layers[layer].update()).norm()) / norm
            whole.append(norm)
    if not layers and not left:
        raise MovaError(f"{first} and {second} have the same weights: there is nothing to extract")
    lost = math.hypot(0.0, *(error * norm for error, norm in zip(errors.values(), whole, strict=True)))
    worst = max(errors.items(), key=lambda item: item[1], default=("", 0.0))
    adapter = Adapter(layers, differences, base_of(first))
    return Extracted(adapter, lost / math.hypot(*whole) if whole else 0.0, worst, math.hypot(0.0, *left))
