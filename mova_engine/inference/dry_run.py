"""Dry run of a denoising step at full size: the sampler's own loop on fake tensors, as one rank of many.

Codecs and text encoder are left out: they are not on the device while the towers denoise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.locate import open_model
from mova_engine.checkpoints.quantised_files import base_of
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import COMPONENTS, PRESETS, MovaConfig
from mova_engine.config.sample import SAMPLE, SampleConfig
from mova_engine.config.stages import DENOISE, EXPERTS, stages
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Steps
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Launch, Processes
from mova_engine.errors import MovaError
from mova_engine.inference.clip_generator import default_batch
from mova_engine.inference.command_settings import cache_file, sample_settings
from mova_engine.inference.denoising import LoopOptions, denoise
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.loading import Trained, compute_dtype, refuse_sharded, stored_dtypes, trained
from mova_engine.inference.process_mesh import choose_shape
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.sampling_memory import kept_of
from mova_engine.inference.sampling_simulation import simulate
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.model_parts import tower_parts
from mova_engine.memory.residency import Residency
from mova_engine.memory.streamed_model import open_streamed
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import known_format
from mova_engine.ops import DTYPES, OpTable
from mova_engine.ops.machine import Machine, assumed_machine
from mova_engine.predict.job import Job, KeptVideo, PlannedRun, layout_of, precision_of
from mova_engine.predict.memory_use import Memory, memory
from mova_engine.rehearsal.absent_files import take_slots
from mova_engine.rehearsal.absent_weights import AbsentComponent, absent_components, hold_absent
from mova_engine.rehearsal.memory_tracker import INPUTS, PARAMETERS
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.rehearsal.stage import Stage
from mova_engine.rehearsal.weights import local_tensors, with_layers


def dry_run_sampling(
    config: SampleConfig, machine: Machine, world_size: int = 1, layers: int | None = None, stored: str | None = None
) -> Rehearsal:
    """Build the model on fake tensors as rank 0 of `world_size`, and run one denoising step with guidance.

    config.checkpoint may also name a model size, if there is no such folder. Prompts are not read: the number of clips
    is config.count, or one for each group of processes. machine: the assumed machine. layers: number of layers of each
    tower, for a quick run; None: all. stored: how the files of a model size would hold the weights of layers; None:
    plain. Call it in a process that is prepared for the machine's kind of device (`rehearsal.fake_devices`). Raises
    MovaError as the run itself would.
    """
    config.memory.check_decided()
    if config.lora:
        raise MovaError("a dry run of sampling adds no adapters: leave --lora out; merged adapters take no memory")
    _check_rehearsed(config)
    opened = _opened(config, stored)
    model, facts, dtype = with_layers(opened.sizes, layers), opened.trained, opened.dtype
    settings = sample_settings(config, default_settings(opened.sizes))
    streamed = config.memory.weights != "device" and not config.parallel.shard
    stage = Stage(machine, world_size, dtype if streamed else None, opened.components)
    shape, batch = _shares(config, model, settings.guidance, stage.launch)
    table = stage.operators({}, (dtype,), training=False)
    steps = settings.noise_levels(facts.schedule)
    kept = _kept(config, settings)
    # What is kept of the video is there in the next step.
    count = 1 if kept is None or _sees(config) else 2
    options = LoopOptions(
        facts.clean_first_frame,
        facts.bridge,
        batch_guidance=not config.sequential_guidance,
        video_every=config.video_every,
        reused=() if count == 1 else (1,),
    )
    with stage.world():
        processes = stage.processes(shape, config.parallel.timeout, sampling=True)
        with stage.play("build"):
            mova, residency = _built(stage, config, model, processes.operators(table), processes, dtype)
            inputs = _inputs(model, batch, stage, _sees(config))
        with stage.play("step"):
            stage.forget()
            denoise(
                mova,
                *inputs,
                _first(steps, count),
                # With guidance, wherever in a run that begins.
                replace(settings.guidance, begin=0.0, end=1.0),
                facts.prediction,
                fps=model.clip.fps,
                options=options,
                processes=processes,
                residency=residency,
            )
        simulation = None
        if world_size > 1:
            simulation = simulate(
                model,
                shape,
                processes,
                clips=_clips(config, world_size),
                batch=batch,
                seed=config.seed,
                sharded=config.parallel.shard,
                collectives=stage.log.collectives(),
            )
    conditions, noise = inputs
    return stage.report(
        command="sample",
        recipe=str(config.checkpoint),
        model=mova,
        shape=shape,
        clips_per_step=batch * shape.data_parallel,
        operators=table,
        given={"video_latents": noise.video, "audio_latents": noise.audio, "text": conditions.text},
        predicted=_predicted(config, replace(opened, sizes=model), settings, machine, shape, batch),
        simulation=simulation,
    )


def predict_sampling(config: SampleConfig, machine: Machine, world_size: int = 1) -> Memory:
    """Without a rehearsal: what the cost model says of memory while denoising."""
    opened = _opened(config, None)
    settings = sample_settings(config, default_settings(opened.sizes))
    shape, batch = _shares(config, opened.sizes, settings.guidance, Launch(0, 0, world_size))
    return _predicted(config, opened, settings, machine, shape, batch)


def _predicted(
    config: SampleConfig, opened: "_Opened", settings: SampleSettings, machine: Machine, shape: MeshShape, batch: int
) -> Memory:
    job = Job(
        opened.sizes,
        task="inference",
        precision=precision_of(str(opened.dtype).removeprefix("torch.")),
        batch=batch,
        evaluations=settings.guidance.evaluations,
        sequential=config.sequential_guidance,
        base=base_of(opened.components.values()),
        kept=_kept(config, settings),
    )
    return memory(PlannedRun(job, layout_of(shape, config.parallel.shard), config.memory), machine)


def _shares(config: SampleConfig, model: MovaConfig, guidance: Guidance, launch: Launch) -> tuple[MeshShape, int]:
    """The mesh, and the clips that a group of processes makes at a time."""
    wanted = _clips(config, launch.world)
    shape = choose_shape(config.parallel, launch, model, guidance, wanted)
    return shape, config.batch or default_batch(model.clip, -(-wanted // shape.data_parallel))


def _clips(config: SampleConfig, world: int) -> int:
    """How many a run makes; prompts in files are not counted."""
    return config.count or (1 if config.prompts is None else world)


@dataclass(frozen=True)
class _Opened:
    """A model as it would be loaded: its sizes, how it was trained, its components by name, and the dtype of all but
    quantised weights.
    """

    sizes: MovaConfig
    trained: Trained
    components: Mapping[str, AbsentComponent]
    dtype: torch.dtype


def _opened(config: SampleConfig, stored: str | None) -> _Opened:
    """The model of a folder or, if there is none, of a size, with the refusals of `inference.loading.open_parts`."""
    name = str(config.checkpoint)
    preset = PRESETS[name] if name in PRESETS and not config.checkpoint.exists() else None
    if preset is not None:
        folder, sizes = None, replace(preset, clip=config.clip.over(preset.clip))
    else:
        folder, sizes = open_model(config.checkpoint, config.clip)
        if stored is not None:
            raise MovaError(f"--stored {stored}: the files of {folder} say so themselves; leave it out")
    parts = absent_components(folder, COMPONENTS if folder is None else listed_components(folder), stored)
    frozen = config.memory.frozen
    for part in parts.values():
        part.check_frozen(frozen)
    if config.parallel.shard:
        refuse_sharded(parts.values())
    formats = {each for part in parts.values() for each in part.formats} | ({frozen} - {"activations"})
    dtype = compute_dtype(None if config.dtype is None else DTYPES[config.dtype], sorted(formats))
    if dtype is None and folder is not None:
        found = stored_dtypes(folder, sizes)
        if len(found) != 1:
            raise MovaError(f"{folder} holds weights of several dtypes: a dry run takes one, give --dtype")
        dtype = found[0]
    return _Opened(sizes, Trained() if folder is None else trained(folder), parts, dtype or torch.bfloat16)


def _check_rehearsed(config: SampleConfig) -> None:
    """MovaError for what a dry run leaves out."""
    given = ("audio", "retake", "extend", "seconds")
    named = next((name for name in given if getattr(config, name) is not None), "audio_alone")
    if config.given == "audio":
        named = "given"
    if getattr(config, named):
        raise MovaError(
            f"a dry run of sampling rehearses steps that make pictures and sound of one clip's length, or sound for a "
            f"video: leave --{named.replace('_', '-')} out"
        )
    if config.cache_threshold is not None:
        raise MovaError("a dry run has no values, by which --cache adaptive decides: leave it out, or --cache 1.6")


def _sees(config: SampleConfig) -> bool:
    """Whether the video is given."""
    return config.video is not None or config.given == "video"


def _kept(config: SampleConfig, settings: SampleSettings) -> KeptVideo | None:
    """What is kept of the video; without reading a calibration, which a model that is not there has not."""
    planned = config.cache_speedup > 1 or (config.fast and not _sees(config) and cache_file(config).exists())
    return kept_of(config, settings, planned)


def _first(steps: Steps, count: int) -> Steps:
    """The first steps, by the first one's expert."""
    return Steps(
        steps.video_sigmas[: count + 1],
        steps.audio_sigmas[: count + 1],
        steps.video_timesteps[:count],
        steps.audio_timesteps[:count],
        steps.experts[:1] * count,
    )


def _built(
    stage: Stage, config: SampleConfig, sizes: MovaConfig, ops: OpTable, processes: Processes, dtype: torch.dtype
) -> tuple[Mova, Residency | None]:
    """The model as the sampler loads it (`inference.loading`), without reading any weights."""
    device = stage.backend.device()
    mova = Mova(sizes, ops, "meta", dtype).requires_grad_(False)
    mova.chunk_rows = config.memory.chunk_rows
    residency = None
    if config.parallel.shard:
        shard_model(mova, processes, device, dtype, config.memory)
    else:
        if config.memory.weights not in ("host", "files"):
            towers = tower_parts(mova, partial(_read, stage, config.memory.frozen, mova, dtype))
        else:
            towers = open_streamed(mova, stage.components, device, dtype, config.memory.weights)
            take_slots(mova, stage.tracker)
        residency = Residency(device, towers, stages(config.memory, experts=sizes.experts))
        # The state after the first clip: every expert has been read, and the evicted ones are where they wait.
        residency.read_ahead(*(name for name in EXPERTS if not residency.lingers(name)))
        for name in DENOISE:
            with residency.stage(name):
                pass
    stage.tracker.label(local_tensors(mova), PARAMETERS, known=True)
    return mova, residency


def _read(stage: Stage, frozen: str, mova: Mova, dtype: torch.dtype, name: str, device: torch.device) -> None:
    """A component onto a device, as the sampler reads it."""
    component = getattr(mova, name)
    stage.components[name].load(component, device=device, dtype=dtype)
    if frozen != "activations":
        hold_absent(component, known_format(frozen))


def _inputs(sizes: MovaConfig, batch: int, stage: Stage, given: bool) -> tuple[Conditions, Latents]:
    """The conditions and the noise of the loop, float32 on the device. given: so is the video."""
    device, latent = stage.backend.device(), sizes.clip.latent_shape
    with stage.tracker.within(INPUTS):
        text = torch.empty(batch, sizes.text_tokens, sizes.video.text_dim, device=device)
        condition = torch.empty(batch, sizes.video.in_dim - sizes.video.out_dim, *latent, device=device)
        video = torch.empty(batch, sizes.video.out_dim, *latent, device=device)
        audio = torch.empty(batch, sizes.audio.in_dim, sizes.clip.audio_tokens, device=device)
        seen = GivenLatents.whole(torch.empty_like(video)) if given else None
        return Conditions(condition, text, torch.empty_like(text), seen), Latents(video, audio)


def in_this_process(
    settings: dict[str, Any],
    machine: dict[str, Any],
    world_size: int,
    layers: int | None,
    stored: str | None = None,
    clock: str | None = None,
) -> dict[str, Any]:
    """`dry_run_sampling` with plain values as arguments and result, to be called in a child process."""
    if clock is not None:
        raise MovaError(f"--clock {clock}: steps of training are timed, not of sampling; leave it out")
    config = SAMPLE.fill(settings, "the rehearsal")
    return dry_run_sampling(config, assumed_machine(**machine), world_size, layers, stored).to_dict()
