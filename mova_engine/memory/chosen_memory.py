"""Which settings of memory a run takes where they are left to the planner: what fits the device and the host, fastest
first, or a refusal that says what would fit.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from mova_engine.backend import Backend, describe_backend
from mova_engine.config.byte_sizes import parse_bytes
from mova_engine.config.memory import PLAIN, MemoryConfig
from mova_engine.errors import MovaError
from mova_engine.predict.hardware import Hardware, hardware_of
from mova_engine.predict.job import IMPLEMENTATIONS, OURS, Job, Layout, PlannedRun, sharded
from mova_engine.predict.memory_use import memory as planned_memory
from mova_engine.predict.remedies import policy_options, remedies
from mova_engine.predict.search import Plan, fitting, leanest

_REMEDIES = 3


@dataclass(frozen=True)
class ChosenMemory:
    """Settings that the planner has chosen, with what it planned. timed: its seconds are those of this device."""

    plan: Plan
    timed: bool

    @property
    def config(self) -> MemoryConfig:
        """The settings, all decided."""
        return self.plan.run.policy

    @property
    def sequential(self) -> bool:
        """In sampling: whether evaluations that could share a forward take turns, to save memory."""
        return self.plan.run.job.sequential

    @property
    def _own(self) -> bool:
        return self.plan.hardware.host_bandwidth is not None

    @property
    def planned_bytes(self) -> float:
        """What the plan has on the device at most; on a CPU, with what waits."""
        return self.plan.memory.total if self._own else self.plan.memory.shared

    @property
    def clip_step_seconds(self) -> float | None:
        """Planned seconds of a step, of one clip of a batch; None: they are not planned for this device."""
        return self.plan.prediction.seconds if self.timed else None

    def words(self) -> str:
        """In a line, before the work: the settings and what is planned."""
        job, hardware = self.plan.run.job, self.plan.hardware
        config = self.config
        rest = policy_options(config, replace(PLAIN[job.task], weights=config.weights, expert=config.expert))
        rest += " --sequential-guidance" if self.sequential else ""
        parts = [f"memory: {self.config.mode}" + (f" ({rest.strip()})" if rest else "")]
        parts.append(f"planned {_gb(self.planned_bytes)} GB of {_gb(hardware.memory)}")
        if self._own and hardware.host_memory is not None and self.plan.memory.on_host >= 1e7:
            parts.append(f"{_gb(self.plan.memory.on_host)} GB of the host's {_gb(hardware.host_memory)}")
        parts.append(f"{self._seconds:.1f} s a step" if self.timed else "seconds are not predicted for this device")
        return ", ".join(parts)

    @property
    def _seconds(self) -> float:
        job = self.plan.run.job
        return self.plan.prediction.seconds * (1 if job.training else job.batch)

    def outcome(self, peak: int, seconds: float | None) -> str:
        """In a line, after the work: what was measured, beside what was planned. peak: `Backend.peak_memory`.
        seconds: of a step; None: none was taken.
        """
        whose = "" if self._own else " by the whole process"
        parts = [f"memory: {_gb(peak)} GB were used at most{whose}, {_gb(self.planned_bytes)} planned"]
        if seconds is not None:
            parts.append(f"{seconds:.2f} s a step" + (f", {self._seconds:.2f} planned" if self.timed else ""))
        return "; ".join(parts)


def choose_memory(
    settings: MemoryConfig,
    job: Job,
    layout: Layout,
    backend: Backend,
    *,
    vram: str | None = None,
    ram: str | None = None,
    least: Callable[[int], int] = lambda value: value,
) -> ChosenMemory:
    """Choose what `settings` leaves open for a run on the backend's device; decided ones stay.

    vram, ram: limits as they are typed, such as "12GB"; None: what is free. least: the smallest of a number over the
    processes of the run, which must all choose alike. Raises MovaError if nothing fits, which names what would.
    """
    hardware, timed = _hardware_here(backend, vram, ram, least)
    fixed, jobs = settings.decided, _ways(job)
    for one in jobs:
        found = fitting(one, layout, hardware, IMPLEMENTATIONS[OURS], fixed)
        if found:
            return ChosenMemory(found[0], timed)
    raise _refusal(jobs[-1], layout, hardware, fixed)


def fits_here(
    settings: MemoryConfig,
    job: Job,
    layout: Layout,
    backend: Backend,
    *,
    vram: str | None = None,
    ram: str | None = None,
) -> bool:
    """Whether a run fits the backend's device. Where the settings leave something open, or a limit is given: whether
    `choose_memory` finds a way. Else as they are, on the device alone: what its host holds is the same for all clips.
    """
    hardware, _ = _hardware_here(backend, vram, ram, lambda value: value)
    if settings.undecided or vram is not None or ram is not None:
        return any(fitting(one, layout, hardware, IMPLEMENTATIONS[OURS], settings.decided) for one in _ways(job))
    found = planned_memory(PlannedRun(job, layout, settings), hardware.machine)
    return (found.shared if hardware.host_bandwidth is None else found.total) <= hardware.budget


def _ways(job: Job) -> list[Job]:
    """A job as it is, and, in sampling, with evaluations that take turns, which needs less memory."""
    turns = not job.training and not job.sequential and job.evaluations > 1
    return [job, replace(job, sequential=True)] if turns else [job]


def _hardware_here(
    backend: Backend, vram: str | None, ram: str | None, least: Callable[[int], int]
) -> tuple[Hardware, bool]:
    """The device and its host with the memory that a run may take; whether the figures for its speed are its own."""
    hardware, known = hardware_of(backend.name, backend.describe())
    own = hardware.host_bandwidth is not None
    on_host = least(describe_backend("cpu").free_memory()[0])
    if ram is not None:
        on_host = min(on_host, parse_bytes(ram, "--ram"))
    limits: dict[str, float] = {"ram": on_host}
    if own or vram is not None:
        free = least(backend.free_memory()[0])
        limits["vram"] = free if vram is None else min(free, parse_bytes(vram, "--vram"))
    return hardware.with_limits(**limits), known


def _refusal(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> MovaError:
    """What is said where nothing fits, with the changes that make it fit."""
    nearest = leanest(job, layout.world, hardware, IMPLEMENTATIONS[OURS], layout, fixed)
    if nearest is None:
        refused = replace(PLAIN[job.task], **fixed).unavailable(job.task, sharded(layout) > 1)
        name, reason = next(iter(refused.items()), ("weights", "no settings go with this mesh"))
        return MovaError(f"memory.{name} {fixed.get(name, '')}: {reason}")
    memory, own = nearest.memory, hardware.host_bandwidth is not None
    need = f"{_gb(memory.total if own else memory.shared)} GB of {_gb(hardware.budget)} that a run can fill"
    if own and hardware.host_budget is not None:
        need += f", and {_gb(memory.on_host)} of the host's {_gb(hardware.host_budget)}"
    would = [remedy.words for remedy in islice(remedies(job, layout, hardware, fixed), _REMEDIES)]
    advice = f"would fit: {'; or '.join(would)}" if would else "no single change makes it fit: see mova plan"
    head = "nothing fits in the memory that is allowed"
    return MovaError(f"{head}: the leanest ({nearest.run.policy.mode}) needs {need}; {advice}")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size >= 5e7 else f"{size / 1e9:.4f}"
