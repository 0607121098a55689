"""Plain CPUs: the device on which everything can be checked."""

import ctypes
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch

from mova_engine.backend.base import Backend
from mova_engine.backend.health import Variable
from mova_engine.backend.machine_memory import machine_memory

# Below this width an operation is too short to share: threads gain little while the machine is idle, and wait for each
# other's turn, many times slower than one, as soon as it is not.
_NARROW = 256

# 0 in this environment variable leaves the memory allocator as the system has it.
KEEP_MEMORY = "MOVA_KEEP_MEMORY"
# glibc's mallopt: parameters, by the environment variables that set them, and values in bytes.
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: free memory kept at the end of the heap
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**30),  # M_MMAP_THRESHOLD: from here on a block is a mapping of its own
}


@cache
def cpu_facts() -> Mapping[str, str]:
    """What Linux tells of the first CPU; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_flags() -> frozenset[str]:
    """The x86 CPU's features by Linux's names, such as avx512f; empty where they are not known."""
    return frozenset(cpu_facts().get("flags", "").split())


class CpuBackend(Backend):
    name = "cpu"
    collectives = "gloo"
    obeys_found_inf = True
    variables = (
        Variable("ATEN_CPU_CAPABILITY", "the vector instructions that PyTorch's own kernels use, instead of the best"),
        Variable("ONEDNN_MAX_CPU_ISA", "the best instructions that oneDNN uses"),
        Variable("MOVA_CPU_ISA", "the instructions that the engine's native kernels use, instead of the best"),
    )

    def unavailable(self) -> str | None:
        """Usable anywhere, unless PyTorch is told to use instructions that would end the process."""
        level = torch.backends.cpu.get_cpu_capability()
        supported = getattr(torch.cpu, f"_is_{level.lower()}_supported", None)
        if supported is None or supported():
            return None
        return f"ATEN_CPU_CAPABILITY={os.environ.get('ATEN_CPU_CAPABILITY')}: this CPU has no {level}; unset it"

    def prepare(self) -> None:
        """Let freed memory stay with the process, where glibc allocates and the user has not chosen otherwise.

        MOVA_KEEP_MEMORY=0 in the environment is such a choice, and so are glibc's own variables for it.

        By default a large block goes back to the system when it is freed, and each page of the next is mapped and
        cleared anew: at 50 MB an activation that takes longer than the operators on it.
        """
        chosen = os.environ.get(KEEP_MEMORY) == "0" or any(name in os.environ for name in _MALLOC)
        if chosen or platform.libc_ver()[0] != "glibc":
            return
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOC.values():
            mallopt(parameter, value)

    def device(self, index: int = 0) -> torch.device:
        return torch.device(self.name)

    def use_device(self, index: int) -> None:
        pass  # all processes share the one CPU

    def describe(self) -> str:
        model = cpu_facts().get("model name") or platform.processor() or platform.machine()
        return f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"

    def slow_dtypes(self) -> tuple[torch.dtype, ...]:
        flags = cpu_flags()
        # Where Linux does not list the features of an x86 CPU, nothing is known.
        return (torch.bfloat16,) if flags and not flags & {"avx512_bf16", "amx_bf16"} else ()

    def free_memory(self) -> tuple[int, int]:
        free, whole = machine_memory()
        return whole - self.memory_allocated() if free is None else free, whole

    def memory_allocated(self) -> int:
        try:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
        except OSError:
            return self.peak_memory()
        return pages * resource.getpagesize()

    def peak_memory(self) -> int:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def use_threads(self, wanted: int | None, width: int) -> None:
        super().use_threads(1 if wanted is None and width < _NARROW else wanted, width)

    def time_mark(self, device: torch.device) -> float:
        return time.perf_counter()

    def has_passed(self, mark: float) -> bool:
        return True

    def seconds_between(self, begin: float, end: float) -> float:
        return end - begin

    def rng_state(self) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)

    def _precision_switches(self) -> list[tuple[str, object, str, object]]:
        # torch 2.9 and newer let oneDNN compute float32 products in bf16 or TF32; "ieee" forbids it.
        mkldnn = torch.backends.mkldnn
        switches = []
        for part, text in (("matmul", "matrix products"), ("conv", "convolutions")):
            section = getattr(mkldnn, part, None)
            if hasattr(section, "fp32_precision"):
                switches.append((f"oneDNN reduced precision in {text}", section, "fp32_precision", "ieee"))
        return switches


BACKEND = CpuBackend()
