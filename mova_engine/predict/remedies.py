"""What makes a run fit that does not: one change at a time, each tried before it is named."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mova_engine.config.memory import MemoryConfig
from mova_engine.predict.hardware import HOST_USABLE, Hardware
from mova_engine.predict.job import IMPLEMENTATIONS, OURS, Job, Layout, PlannedRun
from mova_engine.predict.memory_use import memory
from mova_engine.predict.search import Plan, fill, fitting, policies

_FEWEST_FRAMES = 17
_GB = 1_000_000_000
# Kinds of weights that a base may be held in, the least loss first.
_QUANTISED = ("int8", "nf4")


@dataclass(frozen=True)
class Remedy:
    """words: the change, as a user makes it. plan: what fits then."""

    words: str
    plan: Plan


def remedies(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    """Changes that make a run of ours fit on one mesh, the cheapest first: settings that are given left free, more of
    the host's memory, moments in 8 bits, a base of fewer bits, a shorter clip, a larger device. fixed: settings that
    are given.
    """
    one = list(_single(job, layout, hardware, fixed))
    yield from one or _larger_machine(job, layout, hardware, fixed)


def _single(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    kept = {name: value for name, value in fixed.items() if name == "frozen"}
    if kept != fixed and (found := _fitting(job, layout, hardware, kept)):
        yield Remedy(f"without {_options({n: v for n, v in fixed.items() if n not in kept})}", found[0])
    if job.kept is not None and (found := _fitting(replace(job, kept=None), layout, hardware, fixed)):
        yield Remedy("both towers in each step (without --cache, --audio-sigmas, --video-passes)", found[0])
    yield from _more_on_host(job, layout, hardware, fixed)
    if job.training and job.moments == "float32" and job.muon is None:
        held = replace(job, moments="8bit")
        if found := _fitting(held, layout, hardware, fixed):
            yield Remedy("moments in 8 bits (--optim.moments 8bit)", found[0])
    if job.task != "full" and fixed.get("frozen", "activations") == "activations":
        yield from _quantised(job, layout, hardware, fixed)
    yield from _shorter(job, layout, hardware, fixed)
    yield from _larger_device(job, layout, hardware, fixed)


def _fitting(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> list[Plan]:
    return fitting(job, layout, hardware, IMPLEMENTATIONS[OURS], fixed)


def _options(settings: dict[str, str]) -> str:
    return " ".join(f"--memory.{name} {value}" for name, value in settings.items())


def _more_on_host(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    if hardware.host_memory is None or hardware.host_bandwidth is None:
        return
    found = _fitting(job, layout, replace(hardware, host_memory=math.inf), fixed)
    devices = min(layout.world, hardware.link.devices)
    least = min((plan.memory.on_host * devices for plan in found), default=None)
    if least is not None:
        wanted = math.ceil(least / HOST_USABLE / _GB)
        larger = hardware.with_limits(ram=wanted * _GB)
        yield Remedy(f"{wanted} GB of the host's memory (--ram {wanted}GB)", _fitting(job, layout, larger, fixed)[0])


def _quantised(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    for kind in _QUANTISED if (job.precision, job.base) == ("bf16", "activations") else ():
        if found := _fitting(replace(job, base=kind), layout, hardware, fixed):
            yield Remedy(f"a quantised base (mova quantise FOLDER --weights {kind} --out BASE)", found[0])
            return


def _shorter(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    clip = job.model.clip
    lengths = range(clip.frames - clip.video_stride[0], _FEWEST_FRAMES - 1, -clip.video_stride[0])

    def plans(frames: int) -> list[Plan]:
        model = replace(job.model, clip=replace(clip, frames=frames))
        return _fitting(replace(job, model=model), layout, hardware, fixed)

    # Memory grows with the frames, so that all after the first length that fits do.
    first = bisect_left(lengths, True, key=lambda frames: bool(plans(frames)))
    if first < len(lengths):
        yield Remedy(f"--clip.frames {lengths[first]}", plans(lengths[first])[0])


def _larger_device(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    implementation = IMPLEMENTATIONS[OURS]
    host = hardware.host_bandwidth is None
    least = math.inf
    for policy in policies(job, layout, hardware, implementation, fixed):
        run = PlannedRun(job, layout, policy)
        found = memory(run, hardware.machine)
        if host or fill(found, run, replace(hardware, memory=math.inf)) <= 1:
            least = min(least, found.shared if host else found.total)
    if least < math.inf:
        wanted = math.ceil(least / hardware.usable / _GB)
        larger = hardware.with_limits(**{"ram" if host else "vram": wanted * _GB})
        words = f"--ram {wanted}GB" if host else f"a device with {wanted} GB (--vram {wanted}GB)"
        yield Remedy(words, _fitting(job, layout, larger, fixed)[0])


def _larger_machine(job: Job, layout: Layout, hardware: Hardware, fixed: dict[str, str]) -> Iterator[Remedy]:
    """More of the device's memory and of the host's, where neither is enough."""
    if hardware.host_memory is None or hardware.host_bandwidth is None:
        return
    for device in _larger_device(job, layout, replace(hardware, host_memory=math.inf), fixed):
        vram = device.plan.hardware.memory
        for host in _more_on_host(job, layout, hardware.with_limits(vram=vram), fixed):
            ram = host.plan.hardware.host_memory or 0.0
            yield Remedy(f"--vram {vram / _GB:.0f}GB and --ram {ram / _GB:.0f}GB", host.plan)


def policy_options(policy: MemoryConfig, base: MemoryConfig) -> str:
    """The options that turn settings of memory into others, as a command line has them."""
    return _options(policy.changes(base))
