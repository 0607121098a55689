"""Where the time of a piece of work goes: shares of the operations' own time, from torch's profiler."""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.profiler import ProfilerActivity, profile, record_function, supported_activities

from mova_engine.backend import Backend

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


def time_by_group(run: Callable[[], object], backend: Backend) -> dict[str, float]:
    """Share of the operations' own time by group, over three runs, largest first; {} where the profiler sees none."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if backend.name != "cpu" else [])
    if not supported_activities().issuperset(activities):
        return {}
    with _stderr_closed(), profile(activities=activities) as trace, record_function("run"):
        for _ in range(_RUNS):
            run()
        backend.synchronize()
    totals: dict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        if not event.key.startswith(_COMPUTING):
            continue
        own = event.self_cpu_time_total if backend.name == "cpu" else event.self_device_time_total
        group = next((g for g, names in _GROUPS.items() if event.key.startswith(names)), _OTHER)
        totals[group] += own
    whole = sum(totals.values())
    return {name: own / whole for name, own in sorted(totals.items(), key=lambda item: -item[1])} if whole else {}
