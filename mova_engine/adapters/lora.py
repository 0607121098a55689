"""Low-rank adapters (Hu et al., 2021) in the reference's file format.

An adapted layer computes `x W^T + b + (alpha / r) * (x A^T) B^T`. The file is one flat safetensors mapping from
`component.layer.lora_A.weight` [r, in] and `component.layer.lora_B.weight` [out, r], which are also the names that the
adapted `Mova` gives its parameters. The reference's files do not say alpha; ours keep it in the file's metadata.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.errors import MovaError, suggest
from mova_engine.files.tensors import read_tensors, write_new_file
from mova_engine.models.layers import Linear

ALPHA = "alpha"
# What a training checkpoint calls the file.
_A, _B = ".lora_A.weight", ".lora_B.weight"
_SHOWN = 3


def find_linears(model: nn.Module, targets: Iterable[str]) -> list[str]:
    """Return the names of the linear layers that `targets` mean, in the model's order.

    A target is a layer's full name or its last parts, compared part by part, `*` standing for anything in one part:
    "self_attn.q" is every self-attention's q, "video_dit.blocks.*.ffn.0" one tower's feed-forward; "o" is every layer
    called o, and not every name with that letter. Raises MovaError for a target that matches nothing.
    """
    names = list(_linears(model))
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
    _check_alpha(alpha, "LoRA alpha")
    names = find_linears(model, targets)
    for name in names:
        layer = _free_layer(model, name)
        _attach(layer, draw_a(rank, layer.in_features, generator), torch.zeros(layer.out_features, rank), alpha)
    return names


def draw_a(rank: int, in_features: int, generator: torch.Generator | None = None) -> Tensor:
    """A new adapter's A [rank, in_features], float32 on the CPU: uniform on +-1/sqrt(in)."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)


def load_lora(model: nn.Module, path: str | Path, alpha: float | None = None) -> list[str]:
    """Add the adapters of a file to `model` and return the adapted layers' names. Nothing is added on an error.

    alpha: overrides the file's own; needed where the file has none. Raises MovaError as `read_lora`, and for layers
    that the model does not have, has in another size, or has adapted already.
    """
    pairs, alpha = read_scaled_lora(path, alpha)
    check_fit(model, path, pairs)
    attach_lora(model, pairs, alpha)
    return list(pairs)


def attach_lora(model: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> None:
    """Add the A [r, in] and B [out, r] of layers, by their names in `model`, where they and in what dtype these are.
    MovaError, and nothing is added, where a layer is adapted already.
    """
    layers = {name: _free_layer(model, name) for name in pairs}
    for name, (a, b) in pairs.items():
        _attach(layers[name], a, b, alpha)


def read_lora(path: str | Path, alpha: float | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], float | None]:
    """The A [r, in] and B [out, r] of each layer that a file adapts, by the layers' names in order, and their alpha:
    the one given, or that which the file states, if it does. Raises MovaError for a missing or damaged file and tensors
    that do not pair.
    """
    tensors, metadata = read_tensors(path)
    stray = [name for name in tensors if not name.endswith((_A, _B))]
    layers = sorted({name.removesuffix(_A).removesuffix(_B) for name in tensors if name not in stray})
    stray += [name + part for name in layers for part in (_A, _B) if name + part not in tensors]
    if stray or not layers:
        raise MovaError(f"{path} is no LoRA file: it must hold lora_A, lora_B pairs{_listed(stray, '; see')}")
    alpha = _stored_alpha(path, metadata) if alpha is None else _check_alpha(float(alpha), "alpha")
    return {name: (tensors[name + _A], tensors[name + _B]) for name in layers}, alpha


def read_scaled_lora(path: str | Path, alpha: float | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """`read_lora` of adapters that are to be used: MovaError too where the file states no alpha and none is given."""
    pairs, alpha = read_lora(path, alpha)
    if alpha is None:
        raise MovaError(
            f"{path} does not say its alpha (the reference's files never do; its default is 16): give one "
            "(mova sample: --lora-alpha; mova lora merge: --alpha)"
        )
    return pairs, alpha


def check_fit(model: nn.Module, path: str | Path, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Raise MovaError where the model lacks a layer that a file of adapters adapts, or has it in another size."""
    known = _linears(model)
    unknown = [name for name in pairs if name not in known]
    if unknown:
        raise MovaError(f"{path} adapts layers that the model does not have{_listed(unknown, ':')}")
    wrong: list[str] = []
    for name, (a, b) in pairs.items():
        shape = list(known[name].weight.shape)
        if (a.ndim, b.ndim) != (2, 2) or [b.shape[0], a.shape[1]] != shape or len(a) != b.shape[1]:
            wrong.append(f"{name} is {shape}, A {list(a.shape)}, B {list(b.shape)}")
    if wrong:
        raise MovaError(f"{path} was made for layers of another size{_listed(wrong, ':')}")


def save_lora(model: nn.Module, path: str | Path, write: Callable[..., None] = write_new_file) -> None:
    """Write the model's adapters to one file, with their alpha; a file that is there already is not replaced.

    write: called with the path, the tensors by name and the file's metadata.

    Raises MovaError when the model has no adapters, when they differ in alpha, and when writing fails.
    """
    layers = adapted_layers(model)
    if not layers:
        raise MovaError(f"the model has no LoRA adapters to save to {path}")
    # 12 digits: alpha / r * r may miss alpha in its last bit.
    alphas = sorted({f"{layer.lora_scale * _adapter(layer)[0].out_features:.12g}" for layer in layers.values()})
    if len(alphas) > 1:
        raise MovaError(f"a LoRA file has one alpha, but the model's adapters have {', '.join(alphas)}")
    write(Path(path), lora_parameters(model), {ALPHA: alphas[0]})


def adapted_layers(model: nn.Module) -> dict[str, Linear]:
    """Return the layers that carry an adapter, by name."""
    return {name: layer for name, layer in _linears(model).items() if layer.lora_A is not None}


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapters' parameters under their names in the file: what an optimizer trains."""
    parameters: dict[str, nn.Parameter] = {}
    for name, layer in adapted_layers(model).items():
        a, b = _adapter(layer)
        parameters |= dict(zip((name + _A, name + _B), (a.weight, b.weight), strict=True))
    return parameters


def remove_lora(model: nn.Module) -> None:
    """Take all adapters off; the model computes as before they were added."""
    for layer in adapted_layers(model).values():
        layer.lora_A = layer.lora_B = None


@contextmanager
def merged_lora(model: nn.Module, dtype: torch.dtype | None = None) -> Generator[None]:
    """Inside the block every adapted layer is a plain one with weight `W + (alpha / r) B A`, for export.

    The sum is taken in float32 and stored in `dtype` (None: the weight's own). For bfloat16 it is rounded to one of
    its two neighbours at random, with the probabilities that make the mean the sum itself: rounding to the nearest
    would lose every update below half a step of the weight, and so could lose an adapter whole. The draws depend on the
    layer's name alone. At the end of the block the original weights and adapters are back, untouched.
    """
    layers = adapted_layers(model)
    held = [name for name, layer in layers.items() if layer.weight_scale is not None]
    if held:
        raise MovaError(f"weights held in fp8 cannot take an update up{_listed(held, ':')}; merge into the original")
    kept = {name: (layer.weight, layer.lora_A, layer.lora_B) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            weight = layer.weight
            merged = _rounded(_merged_weight(layer), dtype or weight.dtype, name)
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


def _rounded(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """x float32 in `dtype`; for bfloat16 by stochastic rounding.

    bfloat16 is float32 without the lower 16 bits: adding a uniform 16-bit number and cutting them off carries into the
    upper ones with the probability that the cut part is of a step.
    """
    if dtype != torch.bfloat16:
        return x.to(dtype)
    source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    draws = torch.randint(1 << 16, x.shape, generator=source, dtype=torch.int32).to(x.device)
    bits = (x.contiguous().view(torch.int32) + draws) & -(1 << 16)
    return bits.view(torch.float32).to(dtype)


def _matches(name: str, target: str) -> bool:
    parts, wanted = name.split("."), target.split(".")
    tail = parts[-len(wanted) :]
    return len(tail) == len(wanted) and all(map(fnmatchcase, tail, wanted))


def _linears(model: nn.Module) -> dict[str, Linear]:
    """The layers that can carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def _adapter(layer: Linear) -> tuple[Any, Any]:
    """A and B of a layer that carries an adapter."""
    if layer.lora_A is None or layer.lora_B is None:
        raise MovaError("the layer has no LoRA adapter")
    return layer.lora_A, layer.lora_B


def _free_layer(model: nn.Module, name: str) -> Linear:
    layer = _linears(model)[name]
    if layer.lora_A is not None:
        raise MovaError(f"{name} has a LoRA adapter already: remove or merge it first")
    return layer


def _attach(layer: Linear, a: Tensor, b: Tensor, alpha: float) -> None:
    layer.lora_A, layer.lora_B = (nn.Linear(t.shape[1], t.shape[0], bias=False, device="meta") for t in (a, b))
    for part, value in ((layer.lora_A, a), (layer.lora_B, b)):
        # The bias has the layer's dtype even where the weight is held in fp8.
        part.weight = nn.Parameter(value.to(layer.bias.device, layer.bias.dtype))
    layer.lora_scale = alpha / a.shape[0]


def _stored_alpha(path: str | Path, metadata: Mapping[str, str]) -> float | None:
    if ALPHA not in metadata:
        return None
    try:
        alpha = float(metadata[ALPHA])
    except ValueError as error:
        raise MovaError(f"{path}: alpha '{metadata[ALPHA]}' is not a number") from error
    return _check_alpha(alpha, f"{path}: alpha")


def _check_alpha(alpha: float, what: str) -> float:
    """What scales an adapter: 0 would switch it off, a negative one turn it round."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise MovaError(f"{what} must be a positive number, got {alpha:g}")
    return alpha


def _listed(names: list[str], lead: str) -> str:
    """`": a, b, c, ... (9 in all)"`, or "" for none."""
    if not names:
        return ""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return f"{lead} {', '.join(names[:_SHOWN])}{more}"
