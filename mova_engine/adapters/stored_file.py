"""Adapter files on disk: safetensors, and pickles from which only tensors and plain values are read."""

# torch does not say of all its functions what they take; what a file holds is unknown until it is looked at.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file
from mova_engine.files.tensors import PICKLES, read_tensors


@dataclass(frozen=True)
class StoredFile:
    """The content of a file. tensors: by key. metadata: of safetensors. values: other values of a pickle, by key.
    several: whether it is one of several files of a folder, each with a part of the adapter.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    several: bool = False

    def beside(self, name: str) -> Path:
        """A file of the same folder, which need not be there."""
        return self.path.parent / name

    @property
    def pickled(self) -> bool:
        return self.path.suffix in PICKLES


def read_stored_file(path: Path, several: bool = False) -> StoredFile:
    """Read one file. MovaError for what is missing, damaged, or holds anything but tensors and plain values."""
    require_file(path)
    if path.suffix not in PICKLES:
        tensors, metadata = read_tensors(path)
        return StoredFile(path, tensors, metadata, several=several)
    content = read_pickle(path)
    nested = [value for value in content.values() if isinstance(value, dict)]
    # Tensors lie at the top, or all in one mapping beside a few values.
    tensors = dict(cast(Mapping[str, Any], nested[0])) if len(nested) == 1 else content
    others = {key: value for key, value in content.items() if not isinstance(value, Tensor | dict)}
    stray = [str(key) for key, value in tensors.items() if not (isinstance(value, Tensor) or key in others)]
    stray += [str(key) for key in cast(dict[Any, Any], tensors) if not isinstance(key, str)]
    if stray:
        raise MovaError(f"{path} holds no mapping from names to tensors; see {', '.join(stray[:3])}")
    found = {key: value for key, value in tensors.items() if isinstance(value, Tensor)}
    return StoredFile(path, found, values=others, several=several)


def read_pickle(path: Path) -> dict[str, Any]:
    """The mapping that a .pt file holds, by torch's reader that runs no code. MovaError where it will not do."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = str(error).partition("GLOBAL ")[2].split(" ")[0]
        what = f" ({wanted})" if wanted else ""
        raise MovaError(
            f"{path} holds more than tensors and plain values{what}, or is damaged; opening that could run code, and "
            "it is not loaded: save the tensors alone, as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MovaError(f"{path} is damaged or incomplete ({reason}): copy or download it again") from None
    if not isinstance(content, dict) or not content:
        raise MovaError(f"{path} holds no mapping from names to tensors, but a {type(content).__name__}")
    return cast(dict[str, Any], content)
