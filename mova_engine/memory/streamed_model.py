"""Opens a model folder whose layers are streamed: which weights stay on the device as parts, and which are streamed.

Embeddings, heads and time projections (0.4 GB of an expert's 28.6 in bf16) are loaded and evicted with their stages, as
whole towers are without streaming. The weights of the layers stay in host memory or in the folder's files.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from mova_engine.checkpoints.quantised_files import StoredComponent
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import MovaError
from mova_engine.memory.quantised import within_layers
from mova_engine.memory.residency import Part
from mova_engine.memory.streaming import StreamedModel, model_layers
from mova_engine.memory.weight_sources import HostArena, LayerUnit, StoredWeights, WeightSource
from mova_engine.models.layers import Linear
from mova_engine.models.mova import Mova


def open_streamed(
    mova: Mova,
    stored: Mapping[str, StoredComponent],
    device: torch.device,
    dtype: torch.dtype | None,
    where: Literal["host", "files"],
) -> list[Part]:
    """Prepare `mova`, which is on the meta device, for streamed layers; return the parts that are not streamed.

    stored: the model's components by name, as opened: no header is read again. where: the place of the layers' weights,
    host memory or files. dtype: of all weights that are not quantised; None: as stored. Raises MovaError if files do
    not fit the model.
    """
    names = [name for name in COMPONENTS if getattr(mova, name) is not None]
    for name in names:
        stored[name].fit(getattr(mova, name), dtype)
        _check_streamed(getattr(mova, name), stored[name])
    streamed = {id(module) for modules in model_layers(mova) for module in modules.values()}

    def part(name: str) -> Part:
        component = getattr(mova, name)
        rest = without_modules(component, streamed)
        wanted = {key for key, _ in rest.named_parameters()} | {key for key, _ in rest.named_buffers()}

        def read(at: torch.device) -> None:
            stored[name].load(component, device=at, dtype=dtype, only=wanted)
            component.requires_grad_(False)

        return Part(name, rest, read, "files")

    def source(units: Sequence[LayerUnit]) -> WeightSource:
        files = StoredWeights(units, stored, torch.device("cpu") if where == "host" else device)
        return HostArena(units, device, files) if where == "host" else files

    if where == "host" and device.type == "cpu":
        raise MovaError(
            "memory.weights host: a CPU's memory is the host's; leave it out, or let the weights wait in files: "
            "memory.weights files"
        )
    StreamedModel(mova, source, device)
    return [part(name) for name in names]


def _check_streamed(component: nn.Module, stored: StoredComponent) -> None:
    """MovaError for quantised weights within layers that cannot hold them so: nothing is dequantised on the way."""
    for name, weight in stored.quantised.items():
        if within_layers(name) and not isinstance(component.get_submodule(name), Linear):
            raise MovaError(
                f"{stored.folder}: {name} is in {weight.format.name}, in which it does not stream; leave "
                "memory.weights out"
            )


def without_modules(component: nn.Module, left_out: set[int]) -> nn.Module:
    """A module with the same parameters and submodules under the same names, except the submodules whose `id` is in
    `left_out`.
    """
    found = nn.Module()
    found._parameters, found._buffers = component._parameters, component._buffers
    for name, child in component.named_children():
        if id(child) not in left_out:
            within = left_out & {id(module) for module in child.modules()}
            found.add_module(name, without_modules(child, left_out) if within else child)
    return found
