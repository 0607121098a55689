"""A recorded case: its tensors, configuration and weights, and the models built from them."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.bridge import Bridge
from mova_engine.models.video_dit import VideoDiT
from mova_engine.ops import OpTable

Config = TypeVar("Config", VideoDiTConfig, AudioDiTConfig, BridgeConfig)
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class CaseDevice:
    """Where and how cases run: the bound operators, the device and the dtype of weights and activations."""

    ops: OpTable
    device: torch.device
    dtype: torch.dtype = torch.float32

    def put(self, x: Tensor) -> Tensor:
        """x on the device, in the run's dtype where it is floating point."""
        return x.to(self.device, self.dtype if x.is_floating_point() else None)


@dataclass(frozen=True)
class GoldenCase:
    """One case of a folder."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        """The case's JSON file, for messages."""
        return self.folder / f"{self.name}.json"

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The case's JSON."""
        try:
            found = json.loads(self.path.read_text())
        except (OSError, ValueError) as error:
            raise MovaError(f"cannot read {self.path}: {error}") from None
        if not isinstance(found, dict):
            raise MovaError(f"{self.path} must hold an object, got {type(found).__name__}")
        return found

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All recorded tensors, on the CPU."""
        return read_tensors(self.folder / f"{self.name}.safetensors")

    @property
    def kind(self) -> str:
        """The case's own name, which says what to run."""
        return self.meta.get("case", self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        return self.meta.get("case_parameters", {})

    def parameter(self, name: str) -> Any:
        """One of `parameters`; MovaError where the case does not set it."""
        if name not in self.parameters:
            raise MovaError(f"{self.path}: case_parameters lacks {name}")
        return self.parameters[name]

    @property
    def config(self) -> dict[str, Any]:
        return self.meta["config"]

    def weights(self, component: str) -> dict[str, Tensor]:
        """The state dict recorded for a component ("video", "audio", "bridge", "dac", ...)."""
        names = self.meta["weights"]
        if component not in names:
            raise MovaError(
                f"{self.name}.json names no weights for '{component}' (it has: {', '.join(names) or 'none'})"
            )
        return read_tensors(self.folder / names[component])

    def video_dit(self, machine: CaseDevice, weights: str = "video", config: dict[str, Any] | None = None) -> VideoDiT:
        """The video tower with the recorded weights."""
        return self.load(VideoDiT(tower_config(VideoDiTConfig, config or self.config), machine.ops), weights, machine)

    def audio_dit(self, machine: CaseDevice, config: dict[str, Any] | None = None) -> AudioDiT:
        """The audio tower with the recorded weights."""
        return self.load(AudioDiT(tower_config(AudioDiTConfig, config or self.config), machine.ops), "audio", machine)

    def bridge(self, machine: CaseDevice, config: dict[str, Any] | None = None) -> Bridge:
        """The bridge with the recorded weights."""
        return self.load(Bridge(tower_config(BridgeConfig, config or self.config), machine.ops), "bridge", machine)

    def model_config(self) -> MovaConfig:
        """The sizes of both towers and their bridge, which must fit each other."""
        return MovaConfig(
            self.name,
            tower_config(VideoDiTConfig, self.config["video"]),
            tower_config(AudioDiTConfig, self.config["audio"]),
            tower_config(BridgeConfig, self.config["bridge"]),
            ClipConfig(frames=1, height=16, width=16),
        )

    def load(self, module: Module, weights: str, machine: CaseDevice) -> Module:
        """`module` with the weights recorded for a component, on the machine in its dtype."""
        try:
            module.load_state_dict(self.weights(weights), strict=True)
        except RuntimeError as error:
            raise MovaError(f"{self.path}: weights '{weights}' do not fit: {' '.join(str(error).split())}") from None
        return module.to(machine.device, machine.dtype)


def input_gradients(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients of a case's inputs, by name, without those that the backward did not reach."""
    return {name: x.grad for name, x in leaves.items() if x.grad is not None}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file; MovaError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise MovaError(f"cannot read {path}: {error}") from None


def tower_config(cls: type[Config], values: dict[str, Any]) -> Config:
    """A configuration from a case's `config` entry, without the options that only have one value here."""
    names = {field.name for field in dataclasses.fields(cls)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
    return cls(**given)


def find_cases(folder: Path) -> list[GoldenCase]:
    """Every case of a folder, by name. A JSON file that is neither a case nor weights is an error."""
    if not folder.is_dir():
        raise MovaError(f"{folder} is not a folder of recorded cases")
    cases = []
    for path in sorted(folder.glob("*.json")):
        case = GoldenCase(folder, path.stem)
        if "case" in case.meta:
            cases.append(case)
        elif not any(word in case.meta.get("kind", "") for word in ("weights", "state dict")):
            raise MovaError(f"{path} is neither a case nor a weights file (no 'case' and no 'kind' in it)")
    if not cases:
        raise MovaError(f"{folder} holds no recorded case (*.json with a 'case' entry)")
    return cases
