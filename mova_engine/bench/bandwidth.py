"""Measures the device's copy bandwidth, to which memory-bound operators are compared."""

import torch

from mova_engine.backend import Backend
from mova_engine.bench.timing import Timing, interleave, stopwatch

# Far beyond a cache, small beside a memory.
_BYTES = {"cpu": 1 << 28}
_OTHERS = 1 << 30


def copy_bandwidth(backend: Backend) -> float:
    """Bytes per second, read plus written, of one large `copy_`; median of 10. All threads of torch, on a CPU."""
    size = _BYTES.get(backend.name, _OTHERS)
    source = torch.ones(size // 4, device=backend.device())
    target = torch.empty_like(source)
    times = interleave({"copy": stopwatch(lambda: target.copy_(source), backend)}, rounds=10)["copy"]
    return 2 * size / Timing.of(times).median
