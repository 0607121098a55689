"""A fingerprint of a model's weights: whether adapters were made for the model at hand, told in milliseconds.

It covers names, shapes and dtypes of all tensors and a few bytes of each. Fine-tuning changes some of those bytes in
nearly every tensor; equal fingerprints are no proof that files are equal, which adapters do not need.
"""

import hashlib
from pathlib import Path

from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.released import QUANTISATION
from mova_engine.files.tensors import byte_ranges, read_json, stored_tensors

# Bytes that are read of each tensor, at its middle.
_SAMPLE = 64


def fingerprint(folder: str | Path) -> str:
    """Of the towers and the bridge of a model folder, as hexadecimal digits; of one that `mova quantise` wrote, that of
    the folder that it was made of, whose adapters are its own. Raises MovaError and OSError for files that cannot be
    read.
    """
    folder, digest = Path(folder), hashlib.sha256()
    if (folder / QUANTISATION).is_file():
        source = read_json(folder / QUANTISATION).get("source_fingerprint")
        if isinstance(source, str):
            return source
    for component in listed_components(folder):
        stored = stored_tensors(folder / component)
        samples: dict[str, bytes] = {}
        for path in sorted({tensor.file for tensor in stored.values()}):
            samples |= _samples(path)
        # How tensors are spread over files does not matter, only what they are.
        for name, tensor in sorted(stored.items()):
            digest.update(f"{component}.{name} {tensor.shape} {tensor.dtype} ".encode())
            digest.update(samples[name])
    return digest.hexdigest()[:32]


def _samples(path: Path) -> dict[str, bytes]:
    """Bytes from the middle of each tensor of a safetensors file."""
    found: dict[str, bytes] = {}
    with open(path, "rb") as file:
        for name, (begin, end) in byte_ranges(path).items():
            middle = begin + max(0, (end - begin - _SAMPLE) // 2)
            file.seek(middle)
            found[name] = file.read(min(_SAMPLE, end - middle))
    return found
