"""Searches meshes and memory policies: predicts every sensible combination and recommends the fastest that fits.

Meshes: Ulysses over as many ranks as divide the video heads, a ring for the rest; weights divided over whole nodes or
all devices, or whole on each. If there are very many, only some are tried (`thinned`). Policies: all combinations of
checkpointing, dtype of frozen weights, and tensors in host memory that a run supports (`MemoryConfig.unavailable`); if
host memory is limited, also weights in files. A change against the plain policy is recommended only if it makes the
step at least 1% faster. Copies to and from the host that keep the bus busy for the whole step count as one more change.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from mova_engine.config.memory import PLAIN, VAE_STRIDE, VAE_TILE, MemoryConfig
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import (
    IMPLEMENTATIONS,
    OURS,
    ImplementationCost,
    Job,
    Layout,
    PlannedRun,
    sharded,
    unsharded,
)
from mova_engine.predict.memory_use import Memory, memory
from mova_engine.predict.step_time import StepPrediction, predict

# In which order and how the fields of a policy may be changed to save memory.
CHOICES = {
    "checkpointing": ("selective", "out", "full", "none"),
    "frozen": ("activations", "fp8"),
    "inputs": ("device", "host"),
    "saved": ("device", "host"),
    "chunking": ("none", "rows"),
    "weights": ("device", "host", "files"),
    "optimizer": ("device", "host"),
    "gathered": ("layer", "step"),
    "gradients": ("micro-batch", "step"),
    "prefetch": ("unit", "weights", "all"),
    "expert": ("device", "host"),
    # What stays on the device costs no time in a prediction of one step: taken where it is asked for.
    "idle": ("host", "files"),
    # Tiles take time that a prediction of one step does not count: for where nothing else fits (`fitting`).
    "vae": ("whole", "tiles"),
}
_WORTH = 0.01
_MOST_DEVICES, _FEWEST_FRAMES = 1024, 17
# Meshes of one search: each is judged with some twenty policies, in about 8 ms.
MOST_MESHES = 128


@dataclass(frozen=True)
class Plan:
    """A run on a device, with its predicted memory and step time."""

    run: PlannedRun
    hardware: Hardware
    memory: Memory
    prediction: StepPrediction

    @property
    def fits(self) -> bool:
        return fill(self.memory, self.run, self.hardware) <= 1

    @property
    def changes(self) -> dict[str, str]:
        """The fields in which the policy differs from the plain one."""
        return self.run.policy.changes(PLAIN[self.run.job.task])

    @property
    def seconds_per_clip(self) -> float:
        return self.prediction.seconds / self.prediction.clips


def fill(found: Memory, run: PlannedRun, hardware: Hardware) -> float:
    """What a run holds as a share of what there is, at most 1 where it fits: on the device or on its host, which serves
    all devices of a node, whichever is fuller.
    """
    if hardware.host_bandwidth is None:
        return found.shared / hardware.budget
    limit, devices = hardware.host_budget, min(run.layout.world, hardware.link.devices)
    on_host = found.on_host * devices / limit if limit is not None else 0.0
    return max(found.total / hardware.budget, on_host)


def plan(run: PlannedRun, hardware: Hardware) -> Plan:
    """Predict one run as it is."""
    return Plan(run, hardware, memory(run, hardware.machine), predict(run, hardware))


def layouts(job: Job, devices: int, node: int, implementation: ImplementationCost) -> list[Layout]:
    """Meshes of `devices` devices that can run the job, at most MOST_MESHES."""
    found, factor = list(_possible_layouts(job, devices, node, implementation)), 1
    chosen = found
    while len(chosen) > MOST_MESHES:
        factor *= 2
        chosen = thinned(found, factor)
    return chosen


def thinned(found: list[Layout], factor: int) -> list[Layout]:
    """A subset of meshes: those whose context-parallel size (or, if equal, number of copies of the weights) is at least
    `factor` times the next smaller one kept. The smallest and the largest are kept.
    """

    def spread(sizes: set[int]) -> set[int]:
        kept = [min(sizes)]
        for size in sorted(sizes):
            if size >= factor * kept[-1]:
                kept.append(size)
        return {*kept, max(sizes)}

    groups: dict[tuple[int, int], list[Layout]] = {}
    for layout in found:
        groups.setdefault((layout.cfg, layout.context_parallel), []).append(layout)
    chosen = []
    for cfg in sorted({cfg for cfg, _ in groups}):
        for cp in sorted(spread({cp for other, cp in groups if other == cfg})):
            group = groups[cfg, cp]
            copies = spread({layout.dp_replicate for layout in group})
            chosen += [layout for layout in group if layout.dp_replicate in copies]
    return chosen


def _possible_layouts(job: Job, devices: int, node: int, implementation: ImplementationCost) -> Iterator[Layout]:
    heads, shares, whole = job.model.video.num_heads, True, True
    if implementation.traffic == "symmetric":
        # The reference shares weights in training, and only there.
        heads, shares, whole = math.gcd(heads, job.model.audio.num_heads), job.training, not job.training
    for cfg in (1,) if job.training else sorted({1, job.evaluations}):
        if devices % cfg:
            continue
        for cp in _divisors(devices // cfg):
            groups = devices // cfg // cp
            ulysses = math.gcd(cp, heads)
            for replicate in _divisors(groups):
                layout = Layout(
                    dp_replicate=replicate, dp_shard=groups // replicate, ring=cp // ulysses, ulysses=ulysses, cfg=cfg
                )
                # Copies of the weights between nodes, not within one.
                between = replicate == 1 or sharded(layout) % node == 0
                if shares and sharded(layout) > 1 and between and _possible(job, layout):
                    yield layout
            layout = unsharded(Layout(dp_shard=groups, ring=cp // ulysses, ulysses=ulysses, cfg=cfg))
            if (whole or devices == 1) and _possible(job, layout):
                yield layout


def policies(
    job: Job,
    layout: Layout,
    hardware: Hardware,
    implementation: ImplementationCost,
    fixed: dict[str, str] | None = None,
    planned: bool = False,
) -> Iterator[MemoryConfig]:
    """Policies that make sense and that a run supports; `fixed` fields are not changed. planned: also policies that no
    run supports yet.
    """
    fixed = fixed or {}
    by_task = {
        "full": {"frozen", "weights", "chunking"},
        "lora": {"optimizer"},
        "inference": {"inputs", "saved", "optimizer", "frozen"},
    }
    useless = by_task[job.task] | {"vae"}
    if hardware.host_bandwidth is None or implementation.traffic == "symmetric":
        useless = useless | {"inputs", "saved", "optimizer", "expert"}
    if implementation.traffic == "symmetric":
        useless = useless | {"weights", "idle", "chunking"}
    if job.training:
        useless = useless | {"idle"}
    if not job.training or sharded(layout) == 1 or implementation.traffic == "symmetric":
        useless = useless | {"gathered", "gradients", "prefetch"}
    elif PlannedRun(job, layout, implementation=implementation).micro_batches <= job.batch:
        useless = useless | {"gradients"}
    if "dual_tower_bridge" not in job.components:
        # Parts that are all alike cover each other.
        useless = useless | {"prefetch"}
    if "fp8" not in hardware.peak or implementation.traffic == "symmetric" or job.precision != "bf16":
        useless = useless | {"frozen"}
    if job.model.experts == 1:
        useless = useless | {"expert"}
    allowed = {name: values[:1] if name in useless else values for name, values in CHOICES.items()}
    for name in ("weights", "idle"):
        # Files are slower than the host's memory, and for where that does not suffice; a CPU's is the host's.
        left_out = {"host"} if hardware.host_bandwidth is None and name == "weights" else set[str]()
        left_out |= {"files"} if hardware.host_memory is None and hardware.host_bandwidth is not None else set()
        allowed[name] = tuple(value for value in allowed[name] if value not in left_out)
    if job.task == "lora" and "prefetch" not in useless:
        # Adapters' gradients are small: none of them are waited for.
        allowed["prefetch"] = ("unit", "weights")
    allowed["checkpointing"] = [x for x in allowed["checkpointing"] if x in implementation.checkpointing]
    if not job.training:
        allowed["checkpointing"] = [PLAIN[job.task].checkpointing]
    allowed |= {name: (value,) for name, value in fixed.items()}
    choices = tuple((name, tuple(values)) for name, values in allowed.items())
    yield from _sensible(choices, job.task, sharded(layout) > 1, layout.context_parallel == 1, bool(fixed), planned)


@cache
def _sensible(
    choices: tuple[tuple[str, tuple[Any, ...]], ...], task: str, shards: bool, whole: bool, fixed: bool, planned: bool
) -> tuple[MemoryConfig, ...]:
    """The combinations of choices that are to the purpose, or of which some are fixed; and, unless planned, that run.

    whole: a clip is in one process.
    """
    found: list[MemoryConfig] = []
    names = [name for name, _ in choices]
    for values in product(*(values for _, values in choices)):
        policy = MemoryConfig(**dict(zip(names, values, strict=True)))
        pointless = policy.inputs == "host" and policy.checkpointing == "none"
        # What is kept apart takes as much as the inputs, and comes later.
        pointless |= policy.saved == "host" and (policy.inputs == "device" or policy.checkpointing in ("none", "full"))
        # Where the expert at work lies on the host, the one that waits does.
        pointless |= policy.weights != "device" and policy.expert == "host"
        pointless |= policy.weights_on_host and policy.expert == "host"
        pointless |= policy.checkpointing == "out" and whole
        if (fixed or not pointless) and (planned or not policy.unavailable(task, shards)):
            found.append(policy)
    return tuple(found)


def best(
    job: Job,
    devices: int,
    hardware: Hardware,
    implementation: ImplementationCost | None = None,
    layout: Layout | None = None,
    fixed: dict[str, str] | None = None,
) -> list[Plan]:
    """The best plan of each mesh that fits, by seconds per clip, fastest first. Empty: nothing fits."""
    implementation = implementation or IMPLEMENTATIONS[OURS]
    chosen = [layout] if layout else layouts(job, devices, hardware.link.devices, implementation)
    found = [plans[0] for one in chosen if (plans := fitting(job, one, hardware, implementation, fixed))]
    return sorted(found, key=_rank)


def fitting(
    job: Job,
    layout: Layout,
    hardware: Hardware,
    implementation: ImplementationCost,
    fixed: dict[str, str] | None = None,
) -> list[Plan]:
    """All policies with which a mesh fits, fastest first; with tiles of the video VAE only where none does without."""
    for settings in (fixed or {}, *_in_tiles(job, layout, implementation, fixed)):
        chosen = policies(job, layout, hardware, implementation, settings)
        runs = (PlannedRun(job, layout, policy, implementation) for policy in chosen)
        found = [run for run in runs if fill(memory(run, hardware.machine), run, hardware) <= 1]
        if found:
            return sorted((plan(run, hardware) for run in found), key=_rank)
    return []


def _in_tiles(
    job: Job, layout: Layout, implementation: ImplementationCost, fixed: dict[str, str] | None
) -> list[dict[str, str]]:
    """The fixed settings with tiles of the video VAE, where a run has them."""
    clip = job.model.clip
    larger = max(clip.height, clip.width) > VAE_TILE * VAE_STRIDE
    alone = layout.cfg * layout.context_parallel == 1 and sharded(layout) == 1
    runs = not job.training and job.model.video_codec == "wan" and implementation.name == OURS
    return [{**(fixed or {}), "vae": "tiles"}] if runs and larger and alone and "vae" not in (fixed or {}) else []


def smallest_change(
    job: Job,
    layout: Layout,
    hardware: Hardware,
    implementation: ImplementationCost,
    fixed: dict[str, str] | None = None,
    base: MemoryConfig | None = None,
) -> Plan | None:
    """The fitting plan that differs least from the policy `base` (None: the task's plain one), the fastest of those.

    None where none fits.
    """
    base = base or PLAIN[job.task]
    found = fitting(job, layout, hardware, implementation, fixed)
    return min(found, key=lambda p: (len(p.run.policy.changes(base)), p.seconds_per_clip), default=None)


def leanest(
    job: Job,
    devices: int,
    hardware: Hardware,
    implementation: ImplementationCost,
    layout: Layout | None = None,
    fixed: dict[str, str] | None = None,
    planned: bool = False,
) -> Plan | None:
    """The plan that needs the least memory, whether it fits or not; None if no mesh can run the job. planned: as of
    `policies`.
    """
    chosen = [layout] if layout else layouts(job, devices, hardware.link.devices, implementation)
    runs = [
        PlannedRun(job, one, policy, implementation)
        for one in chosen
        for settings in (fixed, *_in_tiles(job, one, implementation, fixed))
        for policy in policies(job, one, hardware, implementation, settings, planned)
    ]
    if not runs:
        return None
    return plan(min(runs, key=lambda run: fill(memory(run, hardware.machine), run, hardware)), hardware)


def rescue(job: Job, devices: int, hardware: Hardware, implementation: ImplementationCost) -> list[Plan]:
    """Alternatives if nothing fits: more devices (doubling), and the longest shorter clip. At most one of each."""
    found = []
    more = devices * 2
    while more <= _MOST_DEVICES:
        plans = best(replace(job, clips=None), more, hardware, implementation)
        if plans:
            found.append(plans[0])
            break
        more *= 2
    clip = job.model.clip
    step = clip.video_stride[0]
    lengths = range(clip.frames - step, _FEWEST_FRAMES - 1, -4 * step)

    def shorter(frames: int) -> list[Plan]:
        job_then = replace(job, model=replace(job.model, clip=replace(clip, frames=frames)))
        return best(job_then, devices, hardware, implementation)

    # Memory grows with the frames, so that all after the first length that fits do.
    first = bisect_left(lengths, True, key=lambda frames: bool(shorter(frames)))
    if first < len(lengths):
        found.append(shorter(lengths[first])[0])
    return found


def _rank(plan: Plan) -> float:
    busy = plan.prediction.hidden.get("offload", 0.0) / plan.prediction.seconds
    return plan.seconds_per_clip * (1 + _WORTH * (len(plan.changes) + busy))


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _possible(job: Job, layout: Layout) -> bool:
    if not job.training and layout.data_parallel != (job.clips or 1):
        return False  # all devices work on the clips asked for
    if job.training and job.clips and job.clips % layout.data_parallel:
        return False
    return "video_dit" in job.components or layout.context_parallel == 1
