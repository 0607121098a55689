"""Low-rank adapters (Hu et al., 2021) on a model: adding new ones, applying those of files, saving, merging.

An adapted layer computes `x W^T + b + (alpha / r) * (x A^T) B^T`. The engine's file is one flat safetensors mapping
from `component.layer.lora_A.weight` [r, in] and `component.layer.lora_B.weight` [out, r], which are also the names that
the adapted `Mova` gives its parameters, with alpha in the metadata.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.adapters.form import Adapter, LowRank, check_alpha, check_shapes, listed
from mova_engine.adapters.reading import read_adapter
from mova_engine.adapters.rounding import rounded
from mova_engine.errors import MovaError, suggest
from mova_engine.files.tensors import write_new_file
from mova_engine.models.clip_updates import ClipUpdates, Update
from mova_engine.models.layers import Linear

ALPHA = "alpha"
# The file's name in a training checkpoint.
_A, _B = ".lora_A.weight", ".lora_B.weight"
_MERGE_FIRST = "merge them first (mova lora merge)"
# A module's parameters before adapters were added to them, by name.
_ORIGINALS = "unadapted"


def find_linears(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Return the names of the linear layers that `targets` mean, in the model's order.

    A target is a layer's full name or its last parts, compared part by part, `*` standing for anything in one part:
    "self_attn.q" is every self-attention's q, "video_dit.blocks.*.ffn.0" one tower's feed-forward; "o" is every layer
    called o, and not every name with that letter. Raises MovaError for a target that matches nothing.
    """
    names = list(linear_layers(model))
    chosen: set[str] = set()
    for target in targets:
        matched = [name for name in names if _matches(name, target)]
        if not matched:
            known = {name.split(".", depth)[-1] for name in names for depth in range(name.count(".") + 1)}
            raise MovaError(f"LoRA target '{target}' matches no linear layer.{suggest(target, known)}")
        chosen.update(matched)
    if not chosen:
        raise MovaError("no LoRA target is given")
    return [name for name in names if name in chosen]


def add_lora(
    model: nn.Module, targets: Iterable[str], rank: int, alpha: float, generator: torch.Generator | None = None
) -> list[str]:
    """Give the target layers new adapters, in their weights' dtype, and return the layers' names.

    A is uniform on +-1/sqrt(in), B zero, so that the model computes what it did. What is trained is the caller's
    choice, usually `model.requires_grad_(False)` first. generator: a CPU generator for A. Raises MovaError as
    `find_linears` does, and for a layer that has an adapter already.
    """
    if rank < 1:
        raise MovaError(f"LoRA rank must be at least 1, got {rank}")
    check_alpha(alpha, "LoRA alpha")
    names, linears = find_linears(model, targets), linear_layers(model)
    for name in names:
        layer = _free_layer(linears, name)
        _attach(layer, draw_a(rank, layer.in_features, generator), torch.zeros(layer.out_features, rank), alpha / rank)
    return names


def draw_a(rank: int, in_features: int, generator: torch.Generator | None = None) -> Tensor:
    """A new adapter's A [rank, in_features], float32 on the CPU: uniform on +-1/sqrt(in)."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)


def load_lora(model: nn.Module, path: str | Path, alpha: float | None = None, part: str | None = None) -> list[str]:
    """Apply the adapter of a file or folder of any dialect to `model`, and return the names of the layers and
    parameters that it changes. Nothing is changed on an error.

    alpha: overrides the file's own; needed where the file has none. part: what it adapts, where the file does not say
    it. Raises MovaError as `read_adapter` and `check_shapes`, and for layers that are adapted already.
    """
    adapter = read_adapter(path, alpha=alpha, part=part)
    check_shapes(adapter, shapes_of(model), path)
    apply_adapters(model, [(adapter, 1.0)])
    return adapter.names


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters by name, without those of adapters; of a quantised weight [out, in]."""
    shapes = {name: tuple(x.shape) for name, x in model.named_parameters() if ".lora_" not in f".{name}"}
    return shapes | {f"{name}.weight": (x.out_features, x.in_features) for name, x in linear_layers(model).items()}


def apply_adapters(
    model: nn.Module,
    stack: Sequence[tuple[Adapter, float]],
    prefix: str = "",
    *,
    keep: bool = True,
    device: torch.device | None = None,
) -> None:
    """Apply adapters, each with its strength, to a model without any. Several updates of a layer become one whose rank
    is the sum of theirs.

    Low-rank updates of `Linear` layers are computed beside the weight. Other changes (DoRA, layers of other types, full
    differences) are added to the parameter, and the original is kept for `remove_lora`. prefix: what names in the
    adapters have before those in `model`, such as a component. keep: False does not keep originals. device: of the
    low-rank updates; None: that of their layer. Raises MovaError, and applies nothing, if a parameter would have to
    change that is quantised or belongs to a streamed layer.
    """
    own = {name for adapter, _ in stack for name in adapter.names if name.startswith(prefix)}
    linears = linear_layers(model)
    beside: dict[str, list[tuple[LowRank, float]]] = {}
    folded: dict[str, list[tuple[LowRank | Tensor, float]]] = {}
    for name in sorted(own):
        short = name.removeprefix(prefix)
        pairs = [(adapter.layers[name], strength) for adapter, strength in stack if name in adapter.layers]
        deltas = [(adapter.deltas[name], strength) for adapter, strength in stack if name in adapter.deltas]
        if pairs and short in linears and all(pair.magnitude is None for pair, _ in pairs):
            _free_layer(linears, short)
            beside[short] = pairs
        elif pairs:
            folded.setdefault(f"{short}.weight", []).extend(pairs)
        if deltas:
            folded.setdefault(short, []).extend(deltas)
    held = [name for name in folded if _is_held(linears, name)]
    if held:
        raise MovaError(f"quantised weights take low-rank updates only{listed(held, ':')}; {_MERGE_FIRST}")
    absent = [name for name in folded if model.get_parameter(name).is_meta]
    if absent:
        raise MovaError(
            "weights that come layer by layer take low-rank updates of linear layers only, not DoRA or full differences"
            f"{listed(absent, ':')}; {_MERGE_FIRST}"
        )
    for name, pairs in beside.items():
        _attach(linears[name], *stacked(pairs), device)
    for name, changes in folded.items():
        _fold(model, name, changes, keep)


def beside_only(model: nn.Module, adapter: Adapter) -> bool:
    """Whether all that an adapter changes are low-rank updates of `Linear` layers, computed beside their weights."""
    linears = linear_layers(model)
    pairs = adapter.layers.items()
    return not adapter.deltas and all(name in linears and pair.magnitude is None for name, pair in pairs)


@torch.no_grad()
def swap_adapters(
    model: nn.Module,
    stack: Sequence[tuple[Adapter, float]],
    prefix: str = "",
    *,
    rank: int = 0,
    device: torch.device | None = None,
) -> None:
    """Give a model the low-rank updates of `stack` in the place of those that it has; for an empty one they are removed
    and the model computes as without.

    They are written into the memory of those before, where that has room; A and B are filled up with zeros, and B is
    multiplied by all scales, so that neither shapes nor numbers outside of tensors change. rank: the least rank that
    memory is taken for. prefix, device: as of `apply_adapters`. All of the stack is `beside_only`.
    """
    for short, layer in linear_layers(model).items():
        if not stack:
            layer.lora_A = layer.lora_B = None
            continue
        name = f"{prefix}{short}"
        pairs = [(adapter.layers[name], strength) for adapter, strength in stack if name in adapter.layers]
        room = 0 if layer.lora_A is None else layer.lora_A.weight.shape[0]
        if not pairs and not room:
            continue
        wanted = sum(pair.rank for pair, _ in pairs)
        if wanted > room:
            room = max(wanted, rank)
            a, b = torch.zeros(room, layer.in_features), torch.zeros(layer.out_features, room)
            _attach(layer, a, b, 1.0, device)
        own_a, own_b = _adapter(layer)
        own_a.weight.zero_()
        own_b.weight.zero_()
        layer.lora_scale, start = 1.0, 0
        for pair, strength in pairs:
            end = start + pair.rank
            own_a.weight[start:end].copy_(pair.a)
            own_b.weight[:, start:end].copy_(pair.b.float() * (pair.scale * strength))
            start = end
        for part in (own_a, own_b):
            part.weight.requires_grad_(False)


def set_clip_updates(
    model: nn.Module, stacks: Sequence[tuple[Sequence[tuple[Adapter, float]], tuple[int, ...]]], prefix: str = ""
) -> None:
    """Let the clips of a batch take low-rank updates of their own, in place of the model's adapters.

    stacks: adapters with strengths, all `beside_only`, and the clips that take them, by their place in the batch;
    together they name each clip once. Empty: the model's adapters count again. prefix: as of `apply_adapters`. Values
    are those that `swap_adapters` would write.
    """
    for short, layer in linear_layers(model).items():
        name = f"{prefix}{short}"
        groups = [
            (_summed([(adapter.layers[name], x) for adapter, x in stack if name in adapter.layers]), clips)
            for stack, clips in stacks
        ]
        if any(update is not None for update, _ in groups) or (groups and layer.lora_A is not None):
            layer.clip_updates = ClipUpdates(groups)
        else:
            layer.clip_updates = None


def _summed(pairs: Sequence[tuple[LowRank, float]]) -> Update | None:
    """The sum of updates with strengths, concatenated along the rank; B is multiplied by all scales, in float32."""
    if not pairs:
        return None
    a = torch.cat([pair.a for pair, _ in pairs])
    return Update(a, torch.cat([pair.b.float() * (pair.scale * strength) for pair, strength in pairs], 1), 1.0)


def stacked(pairs: Sequence[tuple[LowRank, float]]) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale) of several updates with strengths, concatenated along the rank. If all have one scale, A and B are
    as stored; otherwise B is multiplied by the scales, in float32.
    """
    factors = [pair.scale * strength for pair, strength in pairs]
    if len(pairs) == 1:
        return pairs[0][0].a, pairs[0][0].b, factors[0]
    one = len(set(factors)) == 1
    a = torch.cat([pair.a if one else pair.a.float() for pair, _ in pairs])
    b = [pair.b if one else pair.b.float() * factor for (pair, _), factor in zip(pairs, factors, strict=True)]
    return a, torch.cat(b, 1), factors[0] if one else 1.0


@torch.no_grad()
def _fold(model: nn.Module, name: str, changes: Sequence[tuple[LowRank | Tensor, float]], keep: bool) -> None:
    module_name, _, last = name.rpartition(".")
    module, parameter = model.get_submodule(module_name), model.get_parameter(name)
    value = parameter.float()
    for change, strength in changes:
        value = _changed(value, change, strength)
    if keep:
        module.__dict__.setdefault(_ORIGINALS, {})[last] = parameter
    setattr(module, last, nn.Parameter(rounded(value, parameter.dtype, name), parameter.requires_grad))


def _changed(value: Tensor, change: LowRank | Tensor, strength: float) -> Tensor:
    if isinstance(change, LowRank):
        return change.applied(value, strength)
    return torch.add(value, change.to(value.device).float(), alpha=strength)


def save_lora(
    model: nn.Module,
    path: str | Path,
    write: Callable[..., None] = write_new_file,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the model's adapters to one file, with their alpha; a file that is there already is not replaced.

    write: called with the path, the tensors by name and the file's metadata. metadata: what more the file is to say.

    Raises MovaError when the model has no adapters, when they differ in alpha, and when writing fails.
    """
    layers = adapted_layers(model)
    if not layers:
        raise MovaError(f"the model has no LoRA adapters to save to {path}")
    # 12 digits: alpha / r * r may miss alpha in its last bit.
    alphas = sorted({f"{layer.lora_scale * _adapter(layer)[0].out_features:.12g}" for layer in layers.values()})
    if len(alphas) > 1:
        raise MovaError(f"a LoRA file has one alpha, but the model's adapters have {', '.join(alphas)}")
    if any(_ORIGINALS in module.__dict__ for module in model.modules()):
        raise MovaError(
            "the model's adapters changed more than a LoRA file of it would hold: keep the file they are from"
        )
    write(Path(path), lora_parameters(model), {ALPHA: alphas[0], **(metadata or {})})


def adapted_layers(model: nn.Module) -> dict[str, Linear]:
    """Return the layers that carry an adapter, by name."""
    return {name: layer for name, layer in linear_layers(model).items() if layer.lora_A is not None}


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters under their names in the file: what an optimizer trains."""
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in adapted_layers(model).items():
        a, b = _adapter(layer)
        parameters |= dict(zip((name + _A, name + _B), (a.weight, b.weight), strict=True))
    return parameters


def remove_lora(model: nn.Module) -> None:
    """Remove all adapters; the model computes as before they were added."""
    for layer in adapted_layers(model).values():
        layer.lora_A = layer.lora_B = None
    for module in model.modules():
        for name, original in module.__dict__.pop(_ORIGINALS, {}).items():
            setattr(module, name, original)


@contextmanager
def merged_lora(model: nn.Module, dtype: torch.dtype | None = None) -> Generator[None]:
    """Inside the with-block, adapted layers are plain layers with the weight `W + (alpha / r) B A`, for export.

    The sum is computed in float32 and stored in `dtype` (None: the weight's own). For bfloat16 it is rounded to one of
    its two neighbours at random, with the probabilities whose mean is the sum (stochastic rounding): rounding to the
    nearest value would lose updates below half the spacing of the weight's values. The random numbers depend on the
    layer's name only. After the block the original weights and adapters are restored.
    """
    layers = adapted_layers(model)
    held = [name for name, layer in layers.items() if layer.weight_format is not None]
    if held:
        raise MovaError(f"quantised weights are not merged in place{listed(held, ':')}; {_MERGE_FIRST}")
    kept = {name: (layer.weight, layer.lora_A, layer.lora_B) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            weight = layer.weight
            merged = rounded(_merged_weight(layer), dtype or weight.dtype, name)
            layer.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
            layer.lora_A = layer.lora_B = None
        yield
    finally:
        for name, layer in layers.items():
            layer.weight, layer.lora_A, layer.lora_B = kept[name]


@torch.no_grad()
def _merged_weight(layer: Linear) -> Tensor:
    a, b = _adapter(layer)
    update = b.weight.float() @ a.weight.float()
    return layer.weight.float() + layer.lora_scale * update


def _matches(name: str, target: str) -> bool:
    parts, wanted = name.split("."), target.split(".")
    tail = parts[-len(wanted) :]
    return len(tail) == len(wanted) and all(map(fnmatchcase, tail, wanted))


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """The layers that can carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def _adapter(layer: Linear) -> tuple[Any, Any]:
    """A and B of a layer that carries an adapter."""
    if layer.lora_A is None or layer.lora_B is None:
        raise MovaError("the layer has no LoRA adapter")
    return layer.lora_A, layer.lora_B


def _is_held(linears: Mapping[str, Linear], parameter: str) -> bool:
    """Whether a parameter is the quantised weight of a layer."""
    layer = linears.get(parameter.removesuffix(".weight"))
    return layer is not None and parameter.endswith(".weight") and layer.weight_format is not None


def _free_layer(linears: Mapping[str, Linear], name: str) -> Linear:
    layer = linears[name]
    if layer.lora_A is not None:
        raise MovaError(f"{name} has a LoRA adapter already: remove or merge it first")
    return layer


def _attach(layer: Linear, a: Tensor, b: Tensor, scale: float, device: torch.device | None = None) -> None:
    layer.lora_A, layer.lora_B = (nn.Linear(t.shape[1], t.shape[0], bias=False, device="meta") for t in (a, b))
    for part, value in ((layer.lora_A, a), (layer.lora_B, b)):
        # The bias has the layer's dtype even where the weight is quantised.
        # A copy: what is in the layer may be trained or overwritten.
        part.weight = nn.Parameter(value.to(device or layer.bias.device, layer.bias.dtype, copy=True))
    layer.lora_scale = scale
