"""A safetensors file written tensor by tensor: what is in memory is one of them, however large the file."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.files.stored_tensor import STORED_DTYPES

# What safetensors calls them.
_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}
# Data begins at a multiple of it.
_ALIGNED = 8


def write_streamed(
    path: Path, tensors: Mapping[str, tuple[torch.dtype, torch.Size]], make: Callable[[str], Tensor]
) -> None:
    """Write a file with `tensors`, by name their dtype and shape, each made by `make(name)` when its turn comes.

    For use inside a folder that appears when it is complete. Raises MovaError for a dtype that is not written, and
    OSError.
    """
    with open(path, "wb") as file:
        write_header(file, tensors)
        for name, (dtype, shape) in tensors.items():
            tensor = make(name).contiguous()
            if (tensor.dtype, tensor.shape) != (dtype, shape):
                raise ValueError(f"{name} was announced as {dtype} {list(shape)}, not {tensor.dtype} {tensor.shape}")
            # 0-dimensional tensors cannot be viewed as bytes.
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def write_header(file: BinaryIO, tensors: Mapping[str, tuple[torch.dtype, torch.Size]]) -> int:
    """Write the header of a safetensors file with `tensors`, whose data follow in their order. Returns the file's size
    with them. Raises MovaError for a dtype that is not written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        if dtype not in _NAMES:
            raise MovaError(f"{name}: {str(dtype).removeprefix('torch.')} is not written")
        end = offset + shape.numel() * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    file.write(struct.pack("<Q", len(text)) + text)
    return file.tell() + offset
