"""The sound of a clip as it was decoded, and decoded frames of sound as one table of samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mova_engine.errors import MovaError

Floats = NDArray[np.float32]
Samples = NDArray[np.int16] | Floats


@dataclass(frozen=True)
class Soundtrack:
    """Samples [n, channels], int16 or float32, at `rate` Hz; the first is `start` seconds after the first picture."""

    samples: Samples
    rate: int
    layout: str
    start: float


def joined_samples(frames: Sequence[av.AudioFrame], path: str | Path) -> Samples:
    """The samples [n, channels] of frames one after the other: int16 where they are, else float32 in -1..1.

    Raises MovaError where the rate or the channels change.
    """
    first = frames[0]
    layout, rate, planar = first.layout.name, first.sample_rate, first.format.is_planar
    channels = len(first.layout.channels)
    if any((frame.sample_rate, frame.layout.name) != (rate, layout) for frame in frames):
        raise MovaError(f"{path}: the sound changes its rate or its channels within the file")
    arrays = [frame.to_ndarray() for frame in frames]
    table: Any = np.concatenate([each.T if planar else each.reshape(-1, channels) for each in arrays])
    if first.format.name.rstrip("p") != "s16":
        table = _floats(table, first.format.name)
    return np.ascontiguousarray(table)


def _floats(table: NDArray[Any], name: str) -> Floats:
    """Samples of another format as float32 in -1..1."""
    kind = name.rstrip("p")
    if kind in ("flt", "dbl"):
        return table.astype(np.float32)
    if kind == "u8":
        return ((table.astype(np.float32) - 128) / 128).astype(np.float32)
    return (table / 2.0**31).astype(np.float32)  # s32; 24-bit sound is decoded to it
