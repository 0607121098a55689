"""A sampling run, in one process or several: from the command's settings to mp4 files."""

import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mova_engine.adapters.reading import require_adapter
from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import diffusion_settings
from mova_engine.checkpoints.locate import open_model
from mova_engine.config.adapter_spec import AdapterSpec, parse_adapter
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.sample import REFERENCE, SampleConfig
from mova_engine.data.text import flaw
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Launch, Processes, rank0_first, read_launch
from mova_engine.distributed.watchdog import Watch
from mova_engine.errors import MovaError, counted
from mova_engine.inference.denoising import Step
from mova_engine.inference.pipeline import (
    FIRST_STEP,
    LOADING,
    REFERENCE_NEGATIVE_PROMPT,
    Pipeline,
    SampleSettings,
    default_batch,
    default_settings,
    load_pipeline,
)
from mova_engine.inference.process_mesh import choose_shape, join_processes
from mova_engine.inference.requests import Prompt, Request, make_requests, read_frame, read_prompts
from mova_engine.inference.sample_folder import SHEET_CLIPS, SampleFolder
from mova_engine.inference.sampling_memory import StepClock, choose_for_sampling
from mova_engine.ops import DTYPES

# The advice in the error message after a process has died.
REMEDY = "clips that metadata.jsonl lists are complete; the same command with --overwrite makes all of them anew"


def run(config: SampleConfig) -> int:
    """Sample clips as `config` says; returns 0. Raises MovaError for settings or files that cannot be used.

    All processes call this; only rank 0 prints and writes files.
    """
    launch = read_launch()
    with rank0_first(launch):
        job = read_job(config, launch)
        processes = join_processes(config.parallel, job.backend, launch, job.mesh)
    watch = Watch(launch, config.parallel.timeout, remedy=REMEDY)
    before = signal.signal(signal.SIGTERM, watch.stop) if launch.world > 1 else None
    try:
        with watch.guard():
            return _sample(job, processes, watch)
    finally:
        watch.close()
        processes.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class SamplingJob:
    """A sampling run whose settings and inputs have been read and checked; no weights are loaded yet."""

    config: SampleConfig
    backend: Backend
    folder: Path
    model: MovaConfig
    lora: list[AdapterSpec]
    settings: SampleSettings
    work: list[tuple[Prompt, Request]]
    mesh: MeshShape

    @property
    def clip(self) -> ClipConfig:
        """The clips' shape."""
        return self.model.clip


def read_job(config: SampleConfig, launch: Launch) -> SamplingJob:
    """Read and check everything that needs no weights. Raises MovaError for what cannot be used."""
    backend = get_backend(config.device) if config.device else default_backend()
    console = Console(stderr=True, quiet=launch.rank > 0, soft_wrap=True, markup=False, highlight=False)
    folder, model = open_model(config.checkpoint, config.clip, console.print)
    lora = [parse_adapter(each, config.lora_alpha) for each in config.lora]
    for each in lora:
        require_adapter(each.path)
    settings = sample_settings(config, default_settings(model))
    work = _work(config, model.clip)
    mesh = choose_shape(config.parallel, launch, model, settings.guidance, len(work))
    return SamplingJob(config, backend, folder, model, lora, settings, work, mesh)


def _sample(job: SamplingJob, processes: Processes, watch: Watch) -> int:
    config, folder, backend, first = job.config, job.folder, job.backend, processes.is_first
    console = Console(stderr=True, quiet=not first, soft_wrap=True, markup=False, highlight=False)
    dtype = None if config.dtype is None else DTYPES[config.dtype]
    # The clips are divided among the data-parallel groups.
    batch = config.batch or default_batch(job.clip, -(-len(job.work) // job.mesh.data_parallel))
    chosen = choose_for_sampling(
        config.memory,
        folder,
        job.model,
        backend,
        dtype=dtype,
        evaluations=job.settings.guidance.evaluations,
        batch=batch,
        sequential=config.sequential_guidance,
        processes=processes,
        mesh=job.mesh,
        shard=config.parallel.shard,
        vram=config.vram,
        ram=config.ram,
    )
    if chosen is not None:
        console.print(chosen.words())
    out = SampleFolder(config.out, job.clip, len(job.work), config.overwrite) if first else None
    if not diffusion_settings(folder):
        console.print(f"{folder} does not say how it was trained: sampling it as the released models (velocity)")
    if diffusion_settings(folder).get("skip_first_frame") and any(p.first_frame is None for p, _ in job.work):
        console.print("warning: this model was trained with given first frames; without --image it gets a white one")
    watch.at("loading", watched=False)
    with console.status(Text(f"loading {folder}")):
        pipeline = load_pipeline(
            folder,
            backend,
            dtype=dtype,
            clip=job.clip,
            memory=config.memory if chosen is None else chosen.config,
            lora=job.lora,
            processes=processes,
            shard=config.parallel.shard,
            config=job.model,
        )
        # Loading takes longer in some processes than in others.
        processes.wait_for_first()
    pipeline.schedule = _schedule(config, pipeline.schedule)
    sequential = config.sequential_guidance if chosen is None else chosen.sequential
    pipeline.options = replace(pipeline.options, batch_guidance=not sequential)
    facts = _facts(folder, job.settings, pipeline.schedule, job.lora)
    backend.use_threads(config.threads, job.model.video.dim)
    backend.reset_peak_memory()
    started, clock = time.perf_counter(), StepClock(FIRST_STEP)
    _run(pipeline, job, batch, out, facts, console, watch, clock)
    if chosen is not None:
        console.print(chosen.outcome(backend.peak_memory(), clock.mean))
    if out is None:
        return 0
    sheet, seconds = out.finish(), time.perf_counter() - started
    several = f", {processes.launch.world} processes: {job.mesh}" if processes.launch.world > 1 else ""
    how = f"{backend.name}, batch {batch}{several}"
    made, shown = len(job.work), f" (of the first {SHEET_CLIPS})" if len(job.work) > SHEET_CLIPS else ""
    print(f"{counted(made, 'clip')} in {out.folder} in {seconds:.1f} s ({how}); to look at: {sheet}{shown}")
    return 0


def _not_none(config: SampleConfig, *names: str) -> dict:
    """The named settings that are not None; None leaves a setting to the model."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _schedule(config: SampleConfig, schedule: Schedule) -> Schedule:
    return replace(schedule, **_not_none(config, "video_shift", "audio_shift"))


def sample_settings(config: SampleConfig, defaults: SampleSettings) -> SampleSettings:
    """Return the settings of the command line, completed by a model's own (`defaults`)."""
    guidance = Guidance(config.guidance) if config.guidance else defaults.guidance
    config.check_guidance(guidance.form)
    guidance = replace(guidance, **_not_none(config, "text_scale", "bridge_scale"))
    settings = replace(defaults, guidance=guidance, **_not_none(config, "steps"))
    if config.negative_prompt is None:
        return settings
    negative = REFERENCE_NEGATIVE_PROMPT if config.negative_prompt == REFERENCE else config.negative_prompt
    if reason := flaw(negative):
        raise MovaError(f"--negative-prompt {reason}")
    return replace(settings, negative_prompt=negative)


def _work(config: SampleConfig, shape: ClipConfig) -> list[tuple[Prompt, Request]]:
    image = read_frame(config.image, shape) if config.image else None
    source = str(config.image) if config.image else None
    if config.prompts is None:
        prompts = [Prompt(config.prompt or "", image, source)]
    else:
        prompts = read_prompts(config.prompts, shape)
        if image is not None:
            if any(prompt.first_frame is not None for prompt in prompts):
                raise MovaError(f"--image and {config.prompts} both give first frames: leave --image out")
            prompts = [Prompt(prompt.caption, image, source) for prompt in prompts]
    last_frame = read_frame(config.last_image, shape) if config.last_image else None
    count = len(prompts) if config.count is None else config.count
    return make_requests(prompts, count, config.seed, last_frame)


def _facts(folder: Path, settings: SampleSettings, schedule: Schedule, lora: list[AdapterSpec]) -> dict:
    """The entries of every metadata row that say how the clip was made."""
    guidance = settings.guidance
    return {
        "checkpoint": str(folder),
        "steps": settings.steps,
        "guidance": guidance.form,
        "text_scale": guidance.text_scale,
        "bridge_scale": guidance.bridge_scale,
        "negative_prompt": settings.negative_prompt,
        "video_shift": schedule.video_shift,
        "audio_shift": schedule.audio_shift,
        "lora": [{**each._asdict(), "path": str(each.path)} for each in lora],
    }


def _run(
    pipeline: Pipeline,
    job: SamplingJob,
    batch: int,
    out: SampleFolder | None,
    facts: dict,
    console: Console,
    watch: Watch,
    clock: StepClock,
) -> None:
    """Make the clips; in the first process, write them to `out`."""
    work, settings, groups = job.work, job.settings, job.mesh.data_parallel
    turns = -(-len(work) // (batch * groups))
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task("sampling", total=turns * settings.steps)
        requests = [request for _, request in work]

        def at_stage(stage: str) -> None:
            clock.at(stage)
            watch.at(stage, watched=stage != LOADING)

        def stepped(_: Step) -> None:
            clock.step()
            progress.advance(task)

        clips = pipeline.generate(
            requests,
            settings,
            batch=batch,
            on_step=stepped,
            on_stage=at_stage,
        )
        for (prompt, request), clip in zip(work, clips, strict=True):
            if out is None or clip is None:
                continue
            out.add(clip, prompt.caption, {"seed": request.seed, "source": prompt.source, **facts})
            progress.update(task, description=f"sampling, {out.written} of {len(work)} clips written")
