"""The files of a latent cache: safetensors files with a CRC-32 checksum, by which damage is detected."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor


def read_entry(path: Path) -> tuple[dict[str, Tensor] | None, str]:
    """Read an entry: (tensors, ""), or (None, reason) if the file is damaged or cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            if (file.metadata() or {}).get("crc32") == checksum(tensors):
                return tensors, ""
        return None, "its checksum is wrong"
    except (SafetensorError, OSError) as error:
        return None, str(error)


def is_entry(path: Path) -> bool:
    """Whether a file is an undamaged file of a cache."""
    if path.suffix == ".safetensors":
        return read_entry(path)[0] is not None
    try:
        return isinstance(json.loads(path.read_bytes()), dict | list)
    except (OSError, ValueError):
        return False


def floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32."""
    return {name: x.float() for name, x in tensors.items()}


def serialise(tensors: dict[str, Tensor]) -> bytes:
    """The content of an entry's file."""
    return save(tensors, metadata={"crc32": checksum(tensors)})


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, dtypes, shapes and values, as 8 hexadecimal digits."""
    value = 0
    for name in sorted(tensors):
        x = tensors[name].contiguous()
        value = zlib.crc32(f"{name} {x.dtype} {list(x.shape)}".encode(), value)
        value = zlib.crc32(x.view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
