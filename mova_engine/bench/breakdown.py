"""Where the time of a piece of work goes: shares of the operations' own time, from torch's profiler."""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, supported_activities

from mova_engine.backend import Backend
from mova_engine.bench.timing import Timing, interleave, stopwatch

# torch's own operations, by what they are for; everything else in a step is small and many.
_GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "GELU": ("aten::gelu", "mova_kernels::bias_gelu", "mova_triton::bias_gelu"),
    "layer norm": ("aten::native_layer_norm",),
}
_OTHER = "norms, rotary embedding, modulation, gates, casts and copies"
# Namespaces of operations that compute: torch's own and the kernels'.
_COMPUTING = ("aten::", "mova_kernels::", "mova_triton::")
_RUNS = 3
# Groups whose FLOPs are known.
_RATED = ("matrix products", "attention")
# Rows of the matrices whose product is the measure of a machine: 17 GFLOP.
_SQUARE = 2048


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """What C++ code writes to stderr within goes nowhere: the profiler tells there that it starts and stops.

    Its failures are exceptions.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True)
class GroupTime:
    """What a group of operations takes of the operations' own time: share (0 to 1), and where their FLOPs are known the
    rate in FLOP/s.
    """

    share: float
    flop_per_s: float | None = None


def time_by_group(run: Callable[[], object], backend: Backend) -> dict[str, GroupTime]:
    """Time and rate by group, over three runs, largest first; {} where the profiler sees none.

    FLOPs are those that are computed: a product of matrices as torch's profiler counts it; attention 4 b h n_q n_k d,
    its backward 2.5 times as many (Dao, FlashAttention-2, 2023).
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if backend.name != "cpu" else [])
    if not supported_activities().issuperset(activities):
        return {}
    profiler = profile(activities=activities, record_shapes=True, with_flops=True)
    with _stderr_closed(), profiler as trace, record_function("run"):
        for _ in range(_RUNS):
            run()
        backend.synchronize()
    seconds: dict[str, float] = defaultdict(float)
    flops: dict[str, float] = defaultdict(float)
    for event in trace.key_averages(group_by_input_shape=True):
        if not event.key.startswith(_COMPUTING):
            continue
        own = event.self_cpu_time_total if backend.name == "cpu" else event.self_device_time_total
        group = next((g for g, names in _GROUPS.items() if event.key.startswith(names)), _OTHER)
        seconds[group] += own * 1e-6
        flops[group] += _attention_flops(event) if group == "attention" else event.flops
    whole = sum(seconds.values())
    rated = {name: flops[name] / seconds[name] for name in _RATED if flops[name] and seconds[name]}
    return {
        name: GroupTime(own / whole, rated.get(name))
        for name, own in sorted(seconds.items(), key=lambda item: -item[1])
        if whole
    }


def _attention_flops(event: Any) -> float:
    """Of all calls of one of torch's attention kernels: the first inputs are q and k [b, h, n, d], of a backward the
    gradient before them.
    """
    shapes = [shape for shape in event.input_shapes if len(shape) == 4]
    backward = "backward" in event.key
    if len(shapes) < 2 + backward:
        return 0.0
    (batch, heads, queries, width), (_, _, keys, _) = shapes[backward : backward + 2]
    return 4.0 * batch * heads * queries * keys * width * (2.5 if backward else 1.0) * event.count


def matrix_peak(backend: Backend, dtype: torch.dtype) -> float:
    """FLOP/s of the product of two square matrices: what this machine reaches with all threads of torch at the most;
    the fastest of five.
    """
    a, b = (torch.randn(_SQUARE, _SQUARE, device=backend.device()).to(dtype) for _ in range(2))
    times = interleave({"mm": stopwatch(lambda: torch.mm(a, b), backend)}, rounds=5)["mm"]
    return 2 * _SQUARE**3 / Timing.of(times).fastest
