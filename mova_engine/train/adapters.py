"""Low-rank adapters on a frozen checkpoint: the model that a LoRA run trains."""

from pathlib import Path

import torch

from mova_engine.config import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.models.checkpoint import diffusion_settings
from mova_engine.models.fp8 import hold_in_fp8
from mova_engine.models.lora import adapted_layers, add_lora, draw_a, find_linears
from mova_engine.models.mova import COMPONENTS, Mova
from mova_engine.models.weights import load_component, read_rows
from mova_engine.ops import OpTable
from mova_engine.parallel.processes import Processes
from mova_engine.parallel.shard import Shards, shard_model
from mova_engine.train.config import LoraSettings, TrainConfig
from mova_engine.train.draws import generator
from mova_engine.train.weights import DTYPES


def add_adapters(model: Mova, lora: LoraSettings, source: torch.Generator | None = None) -> list[str]:
    """`add_lora` as the settings say; returns the layers' names."""
    return add_lora(model, lora.targets, lora.rank, _alpha(lora), source)


def build_adapted(
    config: TrainConfig, sizes: MovaConfig, ops: OpTable, device: torch.device, processes: Processes
) -> tuple[Mova, Shards | None]:
    """The checkpoint's model on `device`, frozen, with new adapters, which alone are trained; where the processes share
    its weights, also how.

    Frozen weights are held in what the model computes with, or in fp8; sharded adapters are float32. Raises MovaError
    for a checkpoint that does not fit or was trained for another kind of output.
    """
    folder, dtype = config.model.checkpoint, DTYPES[config.precision]
    check_output(config, folder)
    model = Mova(sizes, ops, "meta").requires_grad_(False)
    if config.parallel.shard:
        return model, _sharded(model, config, folder, device, processes)
    targets = find_linears(model, config.lora.targets)
    for name, component in _components(model):
        load_component(component, folder / name, device=device, dtype=dtype)
        own = [target.removeprefix(f"{name}.") for target in targets if target.startswith(f"{name}.")]
        if own and config.lora.base == "fp8":
            # One component after the other: only one at a time is on the device in full.
            hold_in_fp8(component, own)
    add_adapters(model, config.lora, generator(config.seed, "adapters"))
    return model, None


def _sharded(model: Mova, config: TrainConfig, folder: Path, device: torch.device, processes: Processes) -> Shards:
    names, dtype = add_adapters(model, config.lora), DTYPES[config.precision]
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    shards = shard_model(model, processes, device, dtype, config.parallel.offload)
    for name, component in _components(model):
        pieces = {
            key: shards.piece(parameter) for key, parameter in component.named_parameters() if ".lora_" not in key
        }
        read_rows(folder / name, {key: (piece.shape, piece.rows, piece.tensor) for key, piece in pieces.items()})
    layers, source = adapted_layers(model), generator(config.seed, "adapters")
    for name in names:
        a, b = layers[name].lora_A.weight, layers[name].lora_B.weight
        shards.piece(a).take(draw_a(config.lora.rank, a.shape[1], source))
        shards.piece(b).tensor.zero_()
    return shards


def _components(model: Mova) -> list[tuple[str, torch.nn.Module]]:
    return [(name, getattr(model, name)) for name in COMPONENTS if getattr(model, name) is not None]


def _alpha(lora: LoraSettings) -> float:
    return float(lora.rank if lora.alpha is None else lora.alpha)


def check_output(config: TrainConfig, folder: Path) -> None:
    """An adapted model is sampled as its base is: what its output means cannot change."""
    told, diffusion = diffusion_settings(folder), config.diffusion
    wanted = {"prediction": diffusion.prediction, "skip_first_frame": diffusion.skip_first_frame}
    for name, value in wanted.items():
        base = told.get(name, {"prediction": "velocity", "skip_first_frame": False}[name])
        if base != value:
            raise MovaError(
                f"diffusion.{name} is {value}, but {folder} was trained with {base}, and adapters cannot change it: "
                f"set it to {base}"
            )
