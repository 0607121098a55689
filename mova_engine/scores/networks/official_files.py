"""Official checkpoints of networks that score clips, loaded strictly, without initialisation and without a copy."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mova_engine.errors import MovaError

Network = TypeVar("Network", bound=nn.Module)
# Besides tensors, official files hold a few plain numbers of NumPy 1 or 2 (losses, scores): data that run no code.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS = [
    (np.dtype, "numpy.dtype"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((type(np.dtype(kind)), f"numpy.dtypes.{type(np.dtype(kind)).__name__}") for kind in ("f4", "f8", "i4", "i8")),
]
# Names that a refusal tells: files of other networks lack hundreds.
_NAMED = 3


def load_official(
    build: Callable[[], Network],
    path: Path,
    *,
    under: str | None = None,
    prefix: str = "",
    dropped: frozenset[str] = frozenset(),
) -> Network:
    """The network that `build` makes, with exactly the weights of an official file; in eval mode, without gradients.

    path: .safetensors, or a pickle of torch that is read with weights_only. under: the entry that holds the state dict,
    where the file has one. prefix: what its names have before the network's. dropped: names (without the prefix) that
    the network does without. The network is built on the meta device and takes the file's own tensors.

    Raises MovaError for an unreadable file, and for names or shapes that differ.
    """
    weights = read_weights(path)
    if under is not None and isinstance(weights.get(under), Mapping):
        weights = weights[under]
    named = {name.removeprefix(prefix): x for name, x in weights.items() if isinstance(x, Tensor)}
    return network_of_weights(build, {name: x for name, x in named.items() if name not in dropped}, path)


def network_of_weights(build: Callable[[], Network], weights: Mapping[str, Tensor], path: Path) -> Network:
    """The network that `build` makes, which takes exactly these tensors as its own. path: where they come from."""
    with torch.device("meta"):
        network = build()
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        told = _unlike(network, weights) or " ".join(str(error).split())
        raise MovaError(f"{path} does not hold this network's weights: {told}") from None
    return network.eval().requires_grad_(False)


def _unlike(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """What a network lacks among weights, has too much, or has in another shape; the first few of each by name."""
    own = network.state_dict()
    shapes = [
        f"{name} {list(weights[name].shape)}, not {list(x.shape)}"
        for name, x in own.items()
        if name in weights and weights[name].shape != x.shape
    ]
    kinds = (
        ("missing", [name for name in own if name not in weights]),
        ("unknown", [name for name in weights if name not in own]),
        ("of another shape", shapes),
    )
    return "; ".join(f"{len(names)} {kind} ({_few(names)})" for kind, names in kinds if names)


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _mapped(path: Path) -> Any:
    """A pickle's content. In torch's zip format tensors are read when they are used, as fast as from safetensors."""
    mapped = path.is_file() and zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of safetensors, or a pickle of torch (weights_only), holds. MovaError where it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_NUMBERS):
            found = _mapped(path)
    except (OSError, SafetensorError) as error:
        raise MovaError(f"cannot read {path}: {error}") from None
    except Exception as error:  # torch raises RuntimeError, EOFError and pickle's errors for damaged or unsafe files
        told = str(error).partition("\n")[0] or "it ends too early"
        raise MovaError(f"cannot read {path} as weights: {told}") from None
    if not isinstance(found, dict):
        raise MovaError(f"{path} holds no state dict")
    return found
