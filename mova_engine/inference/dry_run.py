"""Dry run of a denoising step at full size: the sampler's own loop on fake tensors, as one rank of many.

Codecs and text encoder are left out: they are not on the device while the towers denoise.
"""

from dataclasses import replace
from typing import Any

import torch

from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.locate import open_model
from mova_engine.checkpoints.quantised_files import open_component, refuse_quantised
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import PRESETS, MovaConfig
from mova_engine.config.sample import SAMPLE, SampleConfig
from mova_engine.config.stages import DENOISE, EXPERTS, stages
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Steps
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Launch, Processes
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import LoopOptions, denoise
from mova_engine.inference.loading import Trained, stored_dtypes, trained
from mova_engine.inference.pipeline import default_batch
from mova_engine.inference.process_mesh import choose_shape
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.sampling_run import sample_settings
from mova_engine.inference.sampling_simulation import simulate
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.model_parts import tower_parts
from mova_engine.memory.residency import Residency
from mova_engine.memory.streamed_model import open_streamed
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, OpTable
from mova_engine.ops.machine import Machine, assumed_machine
from mova_engine.predict.job import Job, PlannedRun, layout_of, precision_of
from mova_engine.predict.memory_use import Memory, memory
from mova_engine.rehearsal.absent_files import take_slots
from mova_engine.rehearsal.memory_tracker import INPUTS, PARAMETERS
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.rehearsal.stage import Stage
from mova_engine.rehearsal.weights import local_tensors, place_weights, with_layers


def dry_run_sampling(
    config: SampleConfig, machine: Machine, world_size: int = 1, layers: int | None = None
) -> Rehearsal:
    """Build the model on fake tensors as rank 0 of `world_size`, and run one denoising step with guidance.

    config.checkpoint may also name a model size, if there is no such folder. Prompts are not read: the number of clips
    is config.count, or one for each group of processes. machine: the assumed machine. layers: number of layers of each
    tower, for a quick run; None: all. Call it in a process that is prepared for the machine's kind of device
    (`rehearsal.fake_devices`). Raises MovaError as the run itself would.
    """
    config.memory.check_decided()
    if config.lora:
        raise MovaError("a dry run of sampling adds no adapters: leave --lora out; merged adapters take no memory")
    model, facts, settings, dtype = _model_of(config)
    model = with_layers(model, layers)
    streamed = config.memory.weights != "device" and not config.parallel.shard
    stage = Stage(machine, world_size, dtype if streamed else None)
    shape, batch = _shares(config, model, settings.guidance, stage.launch)
    table = stage.operators({}, (dtype,), training=False)
    steps = facts.schedule.inference(settings.steps)
    first = Steps(steps.video_sigmas[:2], steps.audio_sigmas[:2], *_first(steps))
    with stage.world():
        processes = stage.processes(shape, config.parallel.timeout, sampling=True)
        with stage.play("build"):
            mova, residency = _built(stage, config, model, processes.operators(table), processes, dtype)
            inputs = _inputs(model, batch, stage)
        with stage.play("step"):
            stage.forget()
            options = LoopOptions(facts.clean_first_frame, facts.bridge, not config.sequential_guidance)
            denoise(
                mova,
                *inputs,
                first,
                settings.guidance,
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
        predicted=_predicted(config, model, settings.guidance, dtype, machine, shape, batch),
        simulation=simulation,
    )


def predict_sampling(config: SampleConfig, machine: Machine, world_size: int = 1) -> Memory:
    """Without a rehearsal: what the cost model says of memory while denoising."""
    model, _, settings, dtype = _model_of(config)
    shape, batch = _shares(config, model, settings.guidance, Launch(0, 0, world_size))
    return _predicted(config, model, settings.guidance, dtype, machine, shape, batch)


def _predicted(
    config: SampleConfig,
    model: MovaConfig,
    guidance: Guidance,
    dtype: torch.dtype,
    machine: Machine,
    shape: MeshShape,
    batch: int,
) -> Memory:
    precision = precision_of(str(dtype).removeprefix("torch."))
    job = Job(
        model,
        task="inference",
        precision=precision,
        batch=batch,
        evaluations=guidance.evaluations,
        sequential=config.sequential_guidance,
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


def _model_of(config: SampleConfig) -> tuple[MovaConfig, Trained, SampleSettings, torch.dtype]:
    """The model, how it was trained, how it samples, and in which dtype."""
    model, facts, stored = _stored_model(config)
    dtype = stored if config.dtype is None else DTYPES[config.dtype]
    return model, facts, sample_settings(config, default_settings(model)), dtype


def _stored_model(config: SampleConfig) -> tuple[MovaConfig, Trained, torch.dtype]:
    """The model, how it was trained, and the dtype of its weights; bfloat16 for a model size without a folder."""
    name = str(config.checkpoint)
    if name in PRESETS and not config.checkpoint.exists():
        preset = PRESETS[name]
        return replace(preset, clip=config.clip.over(preset.clip)), Trained(), torch.bfloat16
    folder, model = open_model(config.checkpoint, config.clip)
    refuse_quantised(
        (open_component(folder / name) for name in listed_components(folder)), "they are not rehearsed yet"
    )
    stored = stored_dtypes(folder, model)
    if len(stored) != 1 and config.dtype is None:
        raise MovaError(f"{folder} holds weights of several dtypes: a dry run takes one, give --dtype")
    return model, trained(folder), stored[0] if stored else torch.float32


def _first(steps: Steps) -> tuple[Any, ...]:
    return steps.video_timesteps[:1], steps.audio_timesteps[:1], steps.experts[:1]


def _built(
    stage: Stage, config: SampleConfig, sizes: MovaConfig, ops: OpTable, processes: Processes, dtype: torch.dtype
) -> tuple[Mova, Residency | None]:
    """The model as the sampler loads it (`inference.loading`), without reading any weights."""
    device = stage.backend.device()
    mova = Mova(sizes, ops, "meta", dtype).requires_grad_(False)
    mova.chunk_rows = config.memory.chunk_rows
    residency = None
    if config.parallel.shard:
        shard_model(mova, processes, device, dtype, config.memory.weights_on_host)
    else:
        if config.memory.weights not in ("host", "files"):
            towers = tower_parts(mova, lambda name, place: place_weights(getattr(mova, name), place, dtype))
        else:
            towers = open_streamed(mova, config.checkpoint, device, dtype, config.memory.weights)
            take_slots(mova, stage.tracker)
        residency = Residency(device, towers, stages(config.memory, experts=sizes.experts))
        # The state after the first clip: every expert has been read, and the evicted ones are where they wait.
        residency.read_ahead(*(name for name in EXPERTS if not residency.lingers(name)))
        for name in DENOISE:
            with residency.stage(name):
                pass
    stage.tracker.label(local_tensors(mova), PARAMETERS, known=True)
    return mova, residency


def _inputs(sizes: MovaConfig, batch: int, stage: Stage) -> tuple[Conditions, Latents]:
    """The conditions and the noise of the loop, float32 on the device."""
    device, latent = stage.backend.device(), sizes.clip.latent_shape
    with stage.tracker.within(INPUTS):
        text = torch.empty(batch, sizes.text_tokens, sizes.video.text_dim, device=device)
        condition = torch.empty(batch, sizes.video.in_dim - sizes.video.out_dim, *latent, device=device)
        video = torch.empty(batch, sizes.video.out_dim, *latent, device=device)
        audio = torch.empty(batch, sizes.audio.in_dim, sizes.clip.audio_tokens, device=device)
        return Conditions(condition, text, torch.empty_like(text)), Latents(video, audio)


def in_this_process(
    settings: dict[str, Any], machine: dict[str, Any], world_size: int, layers: int | None
) -> dict[str, Any]:
    """`dry_run_sampling` with plain values as arguments and result, to be called in a child process."""
    config = SAMPLE.fill(settings, "the rehearsal")
    return dry_run_sampling(config, assumed_machine(**machine), world_size, layers).to_dict()
