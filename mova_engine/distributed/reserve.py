"""Creates safetensors files whose tensors are written later.

A module apart from `dcp`, because importing torch.distributed.checkpoint takes a second, which a run in one process can
do without.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.uint8: "U8",
}


def reserve_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Create a safetensors file with the header for `tensors` (names, dtypes, shapes), and allocate space for their
    data, which is not written. Raises OSError if the disk has too little space.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    # Larger elements first, so that the data of every tensor are aligned.
    for name, x in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        begin, end = end, end + x.numel() * x.element_size()
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        size = 8 + len(text) + end
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
