"""Tensors of a GGUF file, the format of ggml (llama.cpp): names, shapes and bytes. The package `gguf` reads its header.

Names are those of the native Wan checkpoints, as city96's conversions have them; a prefix `model.diffusion_model.` is
taken off. GGUF has at most four dimensions: a tensor of more is stored flat, beside an entry with its shape.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.files.stored_tensor import STORED_DTYPES, WEIGHT_DTYPES, StoredTensor

SUFFIX = ".gguf"
_PREFIX = "model.diffusion_model."
_SHAPE = "comfy.gguf.orig_shape."


class GgufFile:
    """The header of a file. ranges: the first byte of each tensor and the one behind it. Raises MovaError where it is
    damaged, and where the package `gguf` is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGML_QUANT_SIZES, GGUFReader
        except ImportError:
            raise MovaError(
                f"{path}: GGUF files need the package gguf, which is not installed: pip install gguf"
            ) from None
        self.tensors: dict[str, StoredTensor] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        try:
            reader = GGUFReader(path)
            size = path.stat().st_size
            for tensor in reader.tensors:
                block, stride = GGML_QUANT_SIZES[tensor.tensor_type]
                kind = tensor.tensor_type.name
                # Of integers without scales, which are no weights.
                kind = f"ggml {kind}" if block == 1 and kind not in WEIGHT_DTYPES else kind
                shape = _original_shape(reader, tensor.name) or tuple(int(n) for n in reversed(tensor.shape))
                if block > 1:
                    shape = (*shape[:-1], shape[-1] // block * stride)
                name = tensor.name.removeprefix(_PREFIX)
                self.tensors[name] = StoredTensor(path, shape, kind)
                begin = int(tensor.data_offset)
                self.ranges[name] = begin, begin + int(tensor.n_bytes)
                if begin + int(tensor.n_bytes) > size:
                    raise ValueError(f"{tensor.name} ends behind the end of the file")
        except (OSError, ValueError, KeyError, IndexError, UnicodeDecodeError) as error:
            raise MovaError(f"{path} is damaged or incomplete ({error}): copy or download it again") from error

    def keys(self) -> list[str]:
        """The tensors' names."""
        return list(self.tensors)

    def get_tensor(self, name: str) -> Tensor:
        """A tensor on the CPU; of a quantised one its bytes, uint8 [o, bytes of a row]."""
        found = self.tensors[name]
        dtype = STORED_DTYPES.get(found.dtype, torch.uint8)
        data = torch.empty(found.shape, dtype=dtype)
        with found.file.open("rb") as file:
            file.seek(self.ranges[name][0])
            if file.readinto(data.view(-1).view(torch.uint8).numpy().data) < data.nbytes:
                raise MovaError(f"{found.file} has become shorter while it is read")
        return data


def open_gguf(path: Path) -> GgufFile:
    """The file's header, read once as long as the file stays the same."""
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, size: int, changed: int) -> GgufFile:
    return GgufFile(path)


def _original_shape(reader: Any, name: str) -> tuple[int, ...] | None:
    field = reader.get_field(_SHAPE + name)
    return None if field is None else tuple(int(n) for n in field.contents())
