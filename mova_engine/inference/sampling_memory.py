"""Settings of memory for sampling where they are left to the planner, and what a run measures of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mova_engine.adapters.reading import read_adapter
from mova_engine.backend import Backend
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.sample import SampleConfig
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.loading import is_quantised, refuse_sound_alone, stored_base, stored_dtypes
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.memory.chosen_memory import ChosenMemory, choose_memory, fits_here
from mova_engine.predict.job import AddedAdapters, Job, KeptVideo, Layout, layout_of

# Frames of a latent frame, but for the first.
FRAME_STEP = 4


def choose_for_sampling(
    settings: MemoryConfig,
    folder: Path,
    model: MovaConfig,
    backend: Backend,
    *,
    dtype: torch.dtype | None,
    evaluations: int,
    batch: int,
    sequential: bool = False,
    processes: Processes | None = None,
    mesh: MeshShape | None = None,
    shard: bool = False,
    vram: str | None = None,
    ram: str | None = None,
    lora: Sequence[AdapterSpec] = (),
    kept: KeptVideo | None = None,
) -> ChosenMemory | None:
    """What `memory.chosen_memory` chooses for clips of `model.clip`; None where the settings leave nothing open and no
    limit is given. All processes call it. dtype: None: as the folder's weights are stored. lora: adapters that are
    added, whose files are read to be counted. kept: what is kept of the video (`kept_of`).
    """
    if not settings.undecided and vram is None and ram is None:
        return None
    job = _job(settings, folder, model, dtype, evaluations)
    job = replace(job, batch=batch, sequential=sequential, added=added_adapters(lora), kept=kept)
    place = processes or Processes()

    def least(value: int) -> int:
        return min(place.all_gather_object(value))

    layout = layout_of(mesh or MeshShape(), shard)
    return choose_memory(settings, job, layout, backend, vram=vram, ram=ram, least=least)


def longest_that_fits(
    settings: MemoryConfig,
    folder: Path,
    model: MovaConfig,
    backend: Backend,
    *,
    dtype: torch.dtype | None,
    evaluations: int,
    batch: Callable[[ClipConfig], int],
    vram: str | None = None,
    ram: str | None = None,
) -> ClipConfig:
    """`model.clip`, or where the planner has that larger than the device's memory, the longest clip of its size that
    fits. batch: how many clips of a shape are made at once. Other arguments, errors: as of `choose_for_sampling`;
    MovaError where not even one frame fits.
    """
    job = _job(settings, folder, model, dtype, evaluations)

    def of(latents: int) -> Job:
        clip = replace(model.clip, frames=(latents - 1) * FRAME_STEP + 1)
        return replace(job, model=replace(model, clip=clip), batch=batch(clip))

    def fits(latents: int) -> bool:
        return fits_here(settings, of(latents), Layout(), backend, vram=vram, ram=ram)

    most = (model.clip.frames - 1) // FRAME_STEP + 1
    # One after the other: of shorter clips more are made at once, so that a shorter one may need more memory.
    found = next((latents for latents in range(most, 0, -1) if fits(latents)), None)
    if found is None:
        choose_memory(settings, of(1), Layout(), backend, vram=vram, ram=ram)
        raise MovaError("not even one frame fits the memory of this device: see mova plan")
    return of(found).model.clip


def _job(settings: MemoryConfig, folder: Path, model: MovaConfig, dtype: torch.dtype | None, evaluations: int) -> Job:
    """A denoising step of one clip. MovaError for a folder that makes sound alone."""
    refuse_sound_alone(folder)
    base = stored_base(folder, model)
    plain = settings.frozen == "activations" and not is_quantised(folder, model)
    dtypes = {dtype} if dtype is not None else set(stored_dtypes(folder, model)) if plain else {torch.bfloat16}
    precision = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    return Job(model, task="inference", precision=precision, evaluations=evaluations, base=base)


def kept_of(config: SampleConfig, settings: SampleSettings, planned: bool = False) -> KeptVideo | None:
    """What a run of these settings keeps of the video for evaluations of the audio alone. planned: with a step cache
    that is yet to be planned.
    """
    bridged = sum(bridge for _, bridge in settings.guidance.branches)
    if config.video_every != 1:
        return KeptVideo(bridged)
    if settings.first_block is not None:
        return KeptVideo(bridged, layers=True)
    return KeptVideo(bridged, velocities=True) if planned or settings.reused else None


def added_adapters(chosen: Sequence[AdapterSpec]) -> AddedAdapters:
    """What adapters add to a model in memory: all low-rank updates. Others are added to the weights, and take none."""
    weights, stored = dict[str, int](), 0
    for each in chosen:
        adapter = read_adapter(each.path, alpha=each.alpha, part=each.part)
        for name, pair in adapter.layers.items():
            if pair.magnitude is None:
                component = name.partition(".")[0]
                weights[component] = weights.get(component, 0) + pair.a.numel() + pair.b.numel()
                stored += pair.a.nbytes + pair.b.nbytes
    return AddedAdapters(tuple(weights.items()), stored)


class StepClock:
    """Seconds of denoising steps. A batch's first step begins at the stage `begins`."""

    def __init__(self, begins: str) -> None:
        self._begins, self._since = begins, 0.0
        self._seconds, self._steps = 0.0, 0

    def at(self, stage: str) -> None:
        """The stage that begins now."""
        if stage == self._begins:
            self._since = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        self._seconds, self._steps, self._since = self._seconds + now - self._since, self._steps + 1, now

    @property
    def mean(self) -> float | None:
        """Seconds of a step; None: none was taken."""
        return self._seconds / self._steps if self._steps else None
