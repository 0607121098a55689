"""Low-rank adapters on a frozen checkpoint: the model that a LoRA run trains."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mova_engine.adapters.form import Adapter, AlphaMissing, check_shapes
from mova_engine.adapters.lora import adapted_layers, add_lora, draw_a, find_linears, shapes_of
from mova_engine.adapters.reading import read_adapter
from mova_engine.checkpoints.folder import diffusion_settings
from mova_engine.checkpoints.locate import find_adapters
from mova_engine.checkpoints.quantised_files import load_weights, open_component
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.model import COMPONENTS, MovaConfig
from mova_engine.config.train import LoraSettings, TrainConfig
from mova_engine.distributed.fsdp import Shards, shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_rows
from mova_engine.memory.quantised import check_fits, hold_weights
from mova_engine.memory.streamed_model import open_streamed
from mova_engine.models.layers import Linear
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import known_format
from mova_engine.ops import DTYPES, OpTable
from mova_engine.train.timestep_sampling import generator


def add_adapters(model: Mova, lora: LoraSettings, source: torch.Generator | None = None) -> list[str]:
    """`add_lora` as the settings say; returns the layers' names."""
    return add_lora(model, lora.targets, lora.rank, alpha_of(lora), source)


def build_adapted(
    config: TrainConfig, sizes: MovaConfig, ops: OpTable, device: torch.device, processes: Processes
) -> tuple[Mova, Shards | None]:
    """Build the checkpoint's model on `device`, frozen, with new trainable adapters. Returns its Shards too if
    parallel.shard is set, else None.

    Frozen weights are in the compute dtype, or quantised; sharded adapters are float32. Raises MovaError for a
    checkpoint that does not fit or was trained for another kind of output.
    """
    folder, dtype = base_folder(config), DTYPES[config.dtype]
    check_output(config, folder)
    model = Mova(sizes, ops, "meta").requires_grad_(False)
    model.chunk_rows = config.memory.chunk_rows
    if config.memory.frozen != "activations":
        check_fits(model, known_format(config.memory.frozen), f"memory.frozen {config.memory.frozen}")
    if config.parallel.shard:
        return model, _sharded(model, config, folder, device, processes)
    if config.memory.weights != "device":
        _stream(model, config, folder, device)
        return model, None
    for name, component in _components(model):
        load_weights(component, folder / name, device=device, dtype=dtype)
        if config.memory.frozen != "activations":
            # One component after the other: only one at a time is on the device in full.
            hold_weights(component, known_format(config.memory.frozen))
    add_adapters(model, config.lora, generator(config.seed, "adapters"))
    layers = adapted_layers(model)
    for name, pair in initial_adapters(model, config.lora).items():
        for weight, value in zip(_adapter_weights(layers[name]), pair, strict=True):
            weight.data.copy_(value)
    return model, None


def base_folder(config: TrainConfig) -> Path:
    """The folder of the model that the run adapts. Raises MovaError if the settings name none."""
    if config.model.checkpoint is None:
        raise MovaError(f"{config.name} adapts a trained model: give --model.checkpoint, its folder")
    return config.model.checkpoint


def _adapter_weights(layer: Linear) -> tuple[Tensor, Tensor]:
    """A and B of an adapted layer."""
    assert layer.lora_A is not None and layer.lora_B is not None, "the layer has an adapter"
    return layer.lora_A.weight, layer.lora_B.weight


def initial_adapters(model: Mova, lora: LoraSettings) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the adapters that `lora.init` names: layer name -> (A, B); {} if it names none.

    Raises MovaError if their rank or layers are not those of the settings.
    """
    if lora.init is None:
        return {}
    adapter = read_adapter(lora.init, alpha=lora.alpha)
    _check_trainable(model, adapter, lora.init)
    pairs = {name: (pair.a, pair.b) for name, pair in adapter.layers.items()}
    ranks = sorted({len(a) for a, _ in pairs.values()})
    if len(ranks) > 1:
        raise MovaError(f"{lora.init} has adapters of ranks {', '.join(map(str, ranks))}: only one rank can be trained")
    if ranks != [lora.rank]:
        raise MovaError(
            f"{lora.init} has adapters of rank {ranks[0]}, and lora.rank is {lora.rank}: give --lora.rank {ranks[0]}"
        )
    wanted = find_linears(model, lora.targets)
    for names, says in (
        ([name for name in pairs if name not in set(wanted)], "adapts layers that lora.targets does not name"),
        ([name for name in wanted if name not in pairs], "does not adapt layers that lora.targets names"),
    ):
        if names:
            raise MovaError(f"{lora.init} {says}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    return pairs


def with_initial_adapters(lora: LoraSettings, say: Callable[[str], object]) -> LoraSettings:
    """Return the settings with `init` resolved to a file of adapters, and with that file's alpha.

    Raises MovaError if the file's alpha is not that of the settings, or if neither states one.
    """
    if lora.init is None:
        return lora
    path = find_adapters(lora.init, say)
    stored = _stored_alpha(path, lora.alpha)
    if lora.alpha is not None and stored not in (None, lora.alpha):
        raise MovaError(f"{path} has alpha {stored:g}, and lora.alpha is {lora.alpha:g}: leave --lora.alpha out")
    return replace(lora, init=path, alpha=lora.alpha if stored is None else stored)


def _stored_alpha(path: Path, given: float | None) -> float | None:
    """The one alpha that a file of adapters states; None where it does not, and one is given."""
    try:
        alphas = {pair.alpha for pair in read_adapter(path).layers.values()}
    except AlphaMissing as error:
        if given is None:
            raise MovaError(str(error).replace("--alpha", "--lora.alpha")) from None
        return None
    if len(alphas) > 1:
        shown = ", ".join(f"{alpha:g}" for alpha in sorted(alphas)[:3])
        raise MovaError(f"{path} has adapters of alphas {shown}: only one alpha can be trained")
    return next(iter(alphas), None)


def _check_trainable(model: Mova, adapter: Adapter, path: Path) -> None:
    check_shapes(adapter, shapes_of(model), path)
    more = [*adapter.deltas, *(name for name, pair in adapter.layers.items() if pair.magnitude is not None)]
    if more:
        raise MovaError(
            f"{path} holds full differences or DoRA ({more[0]}), from which LoRA cannot go on: merge it first"
        )


def _sharded(model: Mova, config: TrainConfig, folder: Path, device: torch.device, processes: Processes) -> Shards:
    names, dtype = add_adapters(model, config.lora), DTYPES[config.dtype]
    start = initial_adapters(model, config.lora)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    shards = shard_model(model, processes, device, dtype, config.memory)
    for name, component in _components(model):
        pieces = {
            key: shards.piece(parameter) for key, parameter in component.named_parameters() if ".lora_" not in key
        }
        read_rows(folder / name, {key: (piece.shape, piece.rows, piece.tensor) for key, piece in pieces.items()})
    layers, source = adapted_layers(model), generator(config.seed, "adapters")
    for name in names:
        a, b = _adapter_weights(layers[name])
        # Drawn in any case, so that the other layers' draws do not depend on which adapters are given.
        drawn = draw_a(config.lora.rank, a.shape[1], source)
        shards.piece(a).take(start[name][0] if name in start else drawn)
        shards.piece(b).take(start[name][1]) if name in start else shards.piece(b).tensor.zero_()
    return shards


def _stream(model: Mova, config: TrainConfig, folder: Path, device: torch.device) -> None:
    """Layers come one by one from where memory.weights has them; adapters and what is no layer lie on the device."""
    dtype, where = DTYPES[config.dtype], config.memory.weights
    assert where in ("host", "files"), "nothing is streamed that stays"
    stored = {name: open_component(folder / name) for name, _ in _components(model)}
    for part in open_streamed(model, stored, device, dtype, where):
        assert part.read is not None, "the parts of a folder are read from it"
        part.read(device)
    names = add_adapters(model, config.lora)
    start, layers = initial_adapters(model, config.lora), adapted_layers(model)
    source = generator(config.seed, "adapters")
    for name in names:
        layer = layers[name]
        # Drawn in any case: what is random does not depend on where adapters start from.
        drawn = draw_a(config.lora.rank, layer.in_features, source)
        values = start.get(name, (drawn, torch.zeros(layer.out_features, config.lora.rank)))
        for half, value in zip((layer.lora_A, layer.lora_B), values, strict=True):
            assert half is not None, "just added"
            half.weight = torch.nn.Parameter(value.to(device, dtype))


def _components(model: Mova) -> list[tuple[str, torch.nn.Module]]:
    return [(name, getattr(model, name)) for name in COMPONENTS if getattr(model, name) is not None]


def alpha_of(lora: LoraSettings) -> float:
    """The alpha of new adapters: their output counts alpha / rank."""
    alpha = float(lora.rank if lora.alpha is None else lora.alpha)
    return alpha * math.sqrt(lora.rank) if lora.rank_stabilised else alpha


def check_output(config: TrainConfig, folder: Path) -> None:
    """Raise MovaError if the settings train another kind of output than the model in `folder` has.

    An adapted model is sampled as its base model is, so that the meaning of the output cannot change.
    """
    told, diffusion = diffusion_settings(folder), config.diffusion
    wanted = {"prediction_type": diffusion.prediction_type, "skip_first_frame": diffusion.skip_first_frame}
    for name, value in wanted.items():
        # A folder without the entry is sampled as the released models are; an incomplete entry is an error.
        if told and name not in told:
            raise MovaError(f"{folder / INDEX} does not say how the model was trained: it has no {name}")
        base = told.get(name, {"prediction_type": "velocity", "skip_first_frame": False}[name])
        if base != value:
            raise MovaError(
                f"diffusion.{name} is {value}, but {folder} was trained with {base}, and adapters cannot change it: "
                f"set it to {base}"
            )
