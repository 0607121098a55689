"""What an evaluation case states of itself, each entry read or refused."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mova_engine.errors import MovaError
from mova_engine.parity.case import GoldenCase, read_tensors
from mova_engine.parity.evaluation.recipe_weights import recipe_weights

_ENTRIES = frozenset(
    ("case", "what", "sources", "seed", "dtype", "versions", "weights", "parameters", "notes", "values", "tolerance")
) | {"tensors"}


class StatedCase:
    """A case's parameters, weights and tensors. It remembers which parameters were read: others would be ignored."""

    def __init__(self, case: GoldenCase) -> None:
        self.case = case
        unknown = case.meta.keys() - _ENTRIES
        if unknown:
            raise MovaError(f"{case.path}: {case.kind} does not read {', '.join(sorted(unknown))}")
        self._read: set[str] = set()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All recorded tensors, on the CPU; none where the case has no file of them."""
        return self.case.tensors if self.case.path.with_suffix(".safetensors").exists() else {}

    @property
    def values(self) -> dict[str, Any]:
        return self.case.meta.get("values", {})

    def parameter(self, path: str) -> Any:
        """A parameter by its dotted path, which may name an object. MovaError where the case lacks it."""
        found: Any = self.case.meta.get("parameters", {})
        for name in path.split("."):
            if not isinstance(found, Mapping) or name not in found:
                raise MovaError(f"{self.case.path}: parameters lacks {path}")
            found = found[name]
        self._read.add(path)
        return found

    def require(self, path: str, ours: Any) -> None:
        """MovaError where a parameter has another value than the only one that we compute with."""
        found = self.parameter(path)
        if found != ours:
            raise MovaError(
                f"{self.case.path}: parameters.{path} is {json.dumps(found)}; we compute {json.dumps(ours)}"
            )

    def describes(self, *paths: str) -> None:
        """Parameters that are sentences about the case, for people."""
        self._read.update(paths)

    def check_all_read(self) -> None:
        """MovaError for a parameter that no run reads."""
        for path in _paths(self.case.meta.get("parameters", {})):
            if not any(path == read or path.startswith(f"{read}.") for read in self._read):
                raise MovaError(f"{self.case.path}: {self.case.kind} does not read parameters.{path}")

    def weights_file(self, component: str) -> Path:
        """The recipe or tensor file that the case names for a component."""
        names = self.case.meta.get("weights", {})
        if component not in names:
            raise MovaError(
                f"{self.case.path} names no weights for '{component}' (it has: {', '.join(names) or 'none'})"
            )
        return self.case.folder / names[component]

    def load(self, component: str, module: nn.Module, prefix: str = "") -> nn.Module:
        """`module` in eval mode with exactly the weights of a component: generated from a recipe, or recorded.

        prefix: what the recorded names have before the module's.
        """
        path = self.weights_file(component)
        if path.suffix == ".json":
            kept = {prefix + name: x for name, x in module.state_dict().items()}
            weights = recipe_weights(path, kept)
        else:
            weights = read_tensors(path)
        try:
            module.load_state_dict({name.removeprefix(prefix): x for name, x in weights.items()}, strict=True)
        except RuntimeError as error:
            raise MovaError(
                f"{self.case.path}: weights '{component}' do not fit: {' '.join(str(error).split())}"
            ) from None
        return module.eval().requires_grad_(False)


def _paths(values: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        path = f"{before}{name}"
        found += _paths(value, f"{path}.") if isinstance(value, Mapping) and value else [path]
    return found


def int16_sound(samples: Tensor) -> Tensor:
    """Stored int16 samples as float32 in -1..1."""
    return samples.to(torch.float32) / 32768


def recorded_sounds(case: StatedCase) -> list[str]:
    """Names of the sounds "in.NAME.samples" of a case, in the order in which its JSON describes them."""
    found = [re.fullmatch(r"in\.(.+)\.samples", name) for name in case.case.meta.get("tensors", {})]
    return [match[1] for match in found if match]
