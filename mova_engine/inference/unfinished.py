"""A sampling run that was stopped goes on where it was: complete clips of the very same command are not made again."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.checkpoints.fingerprint import fingerprint
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.command import to_plain
from mova_engine.config.model import ClipConfig
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.decode import Clip, probe, read_clip
from mova_engine.data.text import lines_of
from mova_engine.errors import MovaError
from mova_engine.inference.given_clip import STRIDE

# Settings that say where clips go, not what they are.
_WHERE = ("out", "overwrite")


def run_name(config: SampleConfig, folder: Path, lora: Iterable[AdapterSpec], *inputs: Any) -> str:
    """A digest of all that decides a run's clips: settings, weights of the model folder, adapters, inputs (requests,
    plans, clips). Files that are given by name count by size and time of change.
    """
    settings = {name: value for name, value in to_plain(config).items() if name not in _WHERE}
    digest = hashlib.sha256(json.dumps([settings, fingerprint(folder)], sort_keys=True).encode())
    for part in (*(each.path for each in lora), *inputs):
        for data in _bytes_of(part):
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:32]


def _bytes_of(value: Any) -> Iterable[bytes]:
    """What a value is made of."""
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes()
    elif isinstance(value, Path):
        for path in sorted((value, *value.rglob("*")) if value.is_dir() else (value,)):
            status = os.stat(path)
            yield f"{path} {status.st_size} {status.st_mtime_ns}".encode()
    elif is_dataclass(value):
        for each in fields(value):
            yield from _bytes_of(getattr(value, each.name))
    elif isinstance(value, Mapping):
        yield from _bytes_of(sorted(value.items()))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} in order".encode()
        for each in value:
            yield from _bytes_of(each)
    else:
        yield repr(value).encode()


def complete_clips(listing: Path, run: str) -> list[dict[str, Any]]:
    """The rows of metadata.jsonl, if all of them are of the run of this name; else none."""
    try:
        rows = [json.loads(line) for line in lines_of(listing.read_text(encoding="utf-8")) if line]
    except (OSError, ValueError):
        return []
    return rows if all(isinstance(row, dict) and row.get("run") == run for row in rows) else []


def read_back(path: Path, shape: ClipConfig) -> Clip | None:
    """A written clip, to be shown; None for one that cannot be read. shape: a long clip has more frames."""
    pictures = path.suffix == ".mp4"
    try:
        if pictures:
            frames = round(probe(path).duration * shape.fps)
            shape = replace(shape, frames=max(1, (frames - 1) // STRIDE * STRIDE + 1))
        return read_clip(path, shape, silent="zeros", pictures=pictures)
    except MovaError:
        return None
