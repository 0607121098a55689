"""The files of a cache of latents: safetensors with a checksum, so that damage is noticed."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def read_entry(path: Path) -> tuple[dict[str, Tensor] | None, str]:
    """An entry's tensors, or None and why not."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("crc32") == checksum(tensors):
                return tensors, ""
        return None, "its checksum is wrong"
    except (SafetensorError, OSError) as error:
        return None, str(error)


def is_entry(path: Path) -> bool:
    """Whether a file is one of a cache's, whole."""
    if path.suffix == ".safetensors":
        return read_entry(path)[0] is not None
    try:
        return isinstance(json.loads(path.read_bytes()), dict | list)
    except (OSError, ValueError):
        return False


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.float() for name, x in tensors.items()}


def serialise(tensors: dict[str, Tensor]) -> bytes:
    return save(tensors, metadata={"crc32": checksum(tensors)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        value = zlib.crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), value)
        value = zlib.crc32(x.view(torch.uint8).numpy(), value)
    return f"{value:08x}"
