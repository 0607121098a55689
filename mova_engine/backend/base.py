"""What every backend provides. A backend is stateless: it may be shared and compared by name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from mova_engine.backend.health import Finding, Surroundings, Variable


@dataclass(frozen=True)
class PrecisionReport:
    """One reduced-precision shortcut of the device's float32 maths (TF32, HF32): what it is and whether it was on."""

    switch: str
    was_on: bool


class Backend:
    """A device type: its name (torch's own), vendor library, limits and switches."""

    name: str
    # torch.distributed's name of the collective library.
    collectives: str
    # Whether the time limit of a process group can be changed once the group is there.
    changes_timeouts: bool = True
    # Whether torch's fused AdamW on it leaves weights and moments as they are where `found_inf` says so.
    obeys_found_inf: bool = False
    # Whether gradients may be exchanged while the backward makes others: torch orders what its library's stream reads.
    sums_in_backward: bool = True
    # The package that brings the device to torch, where it is not torch itself.
    vendor_package: str | None = None
    # What a task of Ray that computes on one of them takes of its machine.
    ray_takes: Mapping[str, Any] = MappingProxyType({"num_cpus": 1})
    # Whether it computes in float64; where not, what needs it is computed on the CPU.
    float64: bool = True
    # Whether its convolutions take pictures whose channels come last in memory.
    channels_last: bool = True
    # The environment variables that its libraries listen to.
    variables: tuple[Variable, ...] = ()

    def unavailable(self) -> str | None:
        """Why this device cannot be used here, with the remedy; None when it can."""
        raise NotImplementedError

    def present(self, around: Surroundings) -> bool:
        """Whether this machine is meant to serve the device: its package is installed, or the hardware is there and the
        user has not hidden it. Nothing is loaded. That a present device cannot be used is a fault.
        """
        return True

    def prepare(self) -> None:
        """Import the vendor's library. Called once a device is asked for; must be safe to repeat."""

    def device(self, index: int = 0) -> torch.device:
        return torch.device(self.name, index)

    def use_device(self, index: int) -> None:
        """Make device `index` this process's own: one of several processes on a machine has one."""
        torch.accelerator.set_device_index(index)

    def describe(self) -> str:
        """The device's own name, for logs and result files."""
        raise NotImplementedError

    def emulated(self) -> bool:
        """Whether software stands in for the device, so that timings are no measurements."""
        return False

    def examine_installation(self, around: Surroundings) -> list[Finding]:
        """What fits and what does not among the packages and drivers of this device, without loading any of them."""
        return []

    def versions(self) -> dict[str, str]:
        """Versions of the vendor's parts as they report them once loaded."""
        return {}

    def free_memory(self) -> tuple[int, int]:
        """(free, in all) bytes of the device's memory."""
        raise NotImplementedError

    def peak_flops(self, dtype: torch.dtype) -> float | None:
        """Dense peak in FLOP/s for matrix products in `dtype`, from the vendor's data sheet; None when not known."""
        return None

    def slow_dtypes(self) -> tuple[torch.dtype, ...]:
        """Dtypes that the device computes several times more slowly than float32, having no arithmetic for them."""
        return ()

    def compute_capability(self) -> tuple[int, int] | None:
        """What NVIDIA calls the generation of a GPU, (9, 0) for Hopper; None for devices of another kind."""
        return None

    def memory_allocated(self) -> int:
        """Bytes in use now (the whole process on a CPU)."""
        raise NotImplementedError

    def peak_memory(self) -> int:
        """Highest bytes in use since the start or the last `reset_peak_memory`."""
        raise NotImplementedError

    def reset_peak_memory(self) -> None:
        """Start a new peak-memory interval; no effect where the system keeps one figure per process."""

    def host_memory(self, size: int) -> torch.Tensor:
        """uint8 [size] in the host's memory, from which copies to the device run beside what it computes, where the
        device can do that. MovaError where the memory cannot be had.
        """
        return torch.empty(size, dtype=torch.uint8)

    def synchronize(self) -> None:
        """Wait until queued work is done."""

    def finish_backward(self) -> None:
        """Called between a backward and the first exchange of its gradients, which must not read what is still being
        written. Nothing to do where torch orders the two by events of the device's streams.
        """

    def use_threads(self, wanted: int | None, width: int) -> None:
        """Set the CPU threads of a model `width` channels wide; `wanted` None: the backend's own choice."""
        if wanted is not None:
            torch.set_num_threads(wanted)

    def time_mark(self, device: torch.device) -> Any:
        """A mark of the time at which `device` has done what it was given so far, without waiting for it."""
        event = torch.Event(device, enable_timing=True)
        event.record(torch.accelerator.current_stream(device))
        return event

    def has_passed(self, mark: Any) -> bool:
        """Whether the device has come to a mark of `time_mark`."""
        return mark.query()

    def seconds_between(self, begin: Any, end: Any) -> float:
        """Seconds between two marks that the device has passed."""
        return begin.elapsed_time(end) / 1e3

    def rng_state(self) -> torch.Tensor:
        """State of the device's default generator, for checkpoints."""
        raise NotImplementedError

    def set_rng_state(self, state: torch.Tensor) -> None:
        raise NotImplementedError

    def _precision_switches(self) -> list[tuple[str, object, str, object]]:
        """(description, object, attribute, the value that means full precision) for each float32 shortcut."""
        return []

    def require_full_precision(self) -> list[PrecisionReport]:
        """Switch the float32 shortcuts off for the rest of the process; returns what was found."""
        report = self.precision_report()
        for _, obj, attr, full in self._precision_switches():
            setattr(obj, attr, full)
        return report

    def require_determinism(self) -> None:
        """Have torch compute the same bits each time, for the rest of the process, or raise RuntimeError at the call of
        an operator that cannot. To be called before a process group is opened. Raises MovaError for surroundings that
        forbid it.
        """
        torch.use_deterministic_algorithms(True)
        # It writes to all new memory, to show errors: results do not depend on it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]

    def precision_report(self) -> list[PrecisionReport]:
        """The device's float32 shortcuts and whether each is on now."""
        # torch's "none" means that nothing was asked for, and its default for those switches is full precision.
        return [
            PrecisionReport(text, getattr(obj, attr) not in (full, "none"))
            for text, obj, attr, full in self._precision_switches()
        ]

    @contextmanager
    def full_precision(self) -> Iterator[list[PrecisionReport]]:
        """Within the block float32 means float32: TF32/HF32 off for matrix products and convolutions, restored after.

        Yields what was found, so that a caller can say which shortcuts were switched off.
        """
        switches = self._precision_switches()
        saved = [getattr(obj, attr) for _, obj, attr, _ in switches]
        try:
            yield self.require_full_precision()
        finally:
            for (_, obj, attr, _), value in zip(switches, saved, strict=True):
                setattr(obj, attr, value)
