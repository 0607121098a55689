"""Components of a model whose weights are not read, plain or quantised, as the code that opens folders sees them."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from mova_engine.checkpoints.quantised_files import StoredComponent, open_component
from mova_engine.files.tensors import take_stored_dtypes
from mova_engine.memory.quantised import quantisable
from mova_engine.models.layers import Linear
from mova_engine.models.weight_formats import WeightFormat, known_format
from mova_engine.rehearsal.weights import place_weights


def absent_components(
    folder: Path | None, names: Iterable[str], weights: str | None = None
) -> "dict[str, AbsentComponent]":
    """Components by name: of `folder`, whose headers say how layers are held, or where it is None of a folder that is
    not here, as `mova quantise --weights WEIGHTS` would write it (None: of plain weights).
    """
    if folder is not None:
        return {name: AbsentComponent.of(open_component(folder / name)) for name in names}
    formats = None if weights is None else known_format(weights)
    return {name: AbsentComponent(Path(name), formats) for name in names}


class AbsentComponent(StoredComponent):
    """A component's folder of which nothing is read. held: formats of layers by name; one format: of all layers that
    take it; None: all weights are plain.
    """

    def __init__(self, folder: Path, held: Mapping[str, WeightFormat] | WeightFormat | None = None) -> None:
        super().__init__(folder, {})
        self._held = held
        # Dtypes of what is held of quantised weights, by name; known after `fit`.
        self.dtypes: dict[str, torch.dtype] = {}

    @classmethod
    def of(cls, stored: StoredComponent) -> "AbsentComponent":
        """The same component without its files."""
        return cls(stored.folder, {name: weight.format for name, weight in stored.quantised.items()})

    @property
    def formats(self) -> list[str]:
        """The names of the formats that there are."""
        found = (
            [] if self._held is None else [self._held] if isinstance(self._held, WeightFormat) else self._held.values()
        )
        return sorted({each.name for each in found})

    def fit(self, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        for name, weight_format in self._of_layers(module).items():
            layer = module.get_submodule(name)
            assert isinstance(layer, Linear), "other layers are not quantised"
            absent = weight_format.absent(layer.out_features, layer.in_features)
            layer.hold(weight_format, absent)
            self.dtypes |= {f"{name}.{key}": tensor.dtype for key, tensor in absent.items()}
        take_stored_dtypes(module, {}, dtype)

    def _of_layers(self, module: nn.Module) -> dict[str, WeightFormat]:
        """The formats of a module's layers, which may be fewer than the files have."""
        if self._held is None:
            return {}
        if isinstance(self._held, WeightFormat):
            return dict.fromkeys(quantisable(module, self._held), self._held)
        layers = {name for name, layer in module.named_modules() if isinstance(layer, Linear)}
        return {name: each for name, each in self._held.items() if name in layers}

    def load(
        self,
        module: nn.Module,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None,
        only: Collection[str] | None = None,
    ) -> None:
        if only is None:
            self.fit(module, dtype)
        place_weights(module, torch.device(device), dtype or torch.float32, only)


def hold_absent(module: nn.Module, weight_format: WeightFormat) -> None:
    """What `memory.quantised.hold_weights` leaves, without computing it."""
    for name in quantisable(module, weight_format):
        layer = module.get_submodule(name)
        assert isinstance(layer, Linear), "other layers are not quantised"
        specs = weight_format.absent(layer.out_features, layer.in_features)
        layer.hold(weight_format, {key: torch.empty_like(x, device=layer.weight.device) for key, x in specs.items()})
