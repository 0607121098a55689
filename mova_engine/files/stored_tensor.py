"""Where a tensor of a file lies, and the dtypes that files have, by safetensors' names."""

from pathlib import Path
from typing import NamedTuple

import torch

# The dtypes of weights. Others need more than their bytes, such as scales.
WEIGHT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Those of quantised weights too; what their bytes mean is said in `checkpoints.quantised_files`.
STORED_DTYPES = {**WEIGHT_DTYPES, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn}


class StoredTensor(NamedTuple):
    """Where a tensor lies, its shape, and its dtype by safetensors' name, as "BF16". Of GGUF's quantised tensors: the
    name of their kind, as "Q8_0", and the shape [o, bytes of a row].
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """In the file."""
        dtype = STORED_DTYPES.get(self.dtype, torch.uint8)
        return torch.Size(self.shape).numel() * dtype.itemsize
