"""Weights of official size that are generated from a recipe: a rule for each tensor and the checksum of its bytes."""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mova_engine.errors import MovaError

KEEP = "keep"


def recipe_weights(path: Path, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict that a recipe file describes, by name.

    Each tensor x = RandomState(crc32(name) xor seed).standard_normal(shape) in float32, changed by the tensor's rule.
    kept: the tensors that a module makes by itself (tables, counters), for those the recipe leaves to it.

    Raises MovaError for a damaged recipe, a kept tensor that the module does not make, and another checksum than the
    recorded one.
    """
    recipe = _read(path)
    rules, seed = recipe["rules"], recipe["seed"]
    weights = {}
    for name, shape, dtype, rule, checksum in recipe["tensors"]:
        if rule == KEEP:
            if name not in kept:
                raise MovaError(f"{path}: the module does not make {name}, which the recipe leaves to it")
            weights[name] = kept[name].detach().cpu()
            if list(weights[name].shape) != shape or str(weights[name].dtype) != f"torch.{dtype}":
                found = f"{list(weights[name].shape)} {weights[name].dtype}"
                raise MovaError(f"{path}: {name} is {found} in the module, {shape} {dtype} in the recipe")
            # Tables of sines and filters differ in their last bits between libraries: no checksum of theirs can hold.
            continue
        array = _drawn(name, shape, seed, *rules[rule][1:])
        if zlib.crc32(array.tobytes()) != checksum:
            raise MovaError(f"{path}: {name} has another checksum than the recipe's (NumPy {np.__version__})")
        weights[name] = torch.from_numpy(array)
    return weights


def drawn_tensor(name: str, shape: list[int], seed: int, kind: str, number: float) -> Tensor:
    """One tensor float32 by a rule of recipes: what a case draws for an input instead of recording it."""
    return torch.from_numpy(_drawn(name, shape, seed, kind, number))


def _drawn(name: str, shape: list[int], seed: int, kind: str, number: float) -> "np.ndarray[Any, np.dtype[np.float32]]":
    if kind == "const":
        return np.full(shape, number, np.float32)
    x = np.random.RandomState(zlib.crc32(name.encode()) ^ seed).standard_normal(shape).astype(np.float32)
    scale = np.float32(number / math.sqrt(math.prod(shape[1:]))) if kind == "fan_in" else np.float32(number)
    if kind in ("normal", "fan_in"):
        return scale * x
    one = np.float32(1)
    if kind == "one_plus":
        return one + scale * x
    if kind == "one_sq":
        return one + scale * (x * x)
    raise MovaError(f"unknown rule '{kind}' for {name}. Known: normal, fan_in, one_plus, one_sq, const, keep")


def recipe_shapes(path: Path) -> dict[str, list[int]]:
    """The shapes that a recipe, or a list of an official checkpoint's names, states by name."""
    return {entry[0]: entry[1] for entry in _read(path)["tensors"]}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise MovaError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict) or "tensors" not in found:
        raise MovaError(f"{path} is no recipe: it has no 'tensors'")
    return found
