"""A sampling run, in one process or several: from the command's settings to mp4 files."""

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.decode import Clip, probe, read_clip
from mova_engine.data.text import shown
from mova_engine.distributed.processes import Launch, Processes, rank0_first, read_launch
from mova_engine.distributed.stop_signals import StopRequest, ended_at_once
from mova_engine.distributed.watchdog import Watch
from mova_engine.errors import MovaError, counted
from mova_engine.inference.audio_alone import check_form, generate_sound
from mova_engine.inference.clip_facts import facts_of_given, facts_of_run, is_solid
from mova_engine.inference.command_settings import sample_settings, schedule_of, with_cache
from mova_engine.inference.denoising import Step
from mova_engine.inference.extension import Extension, extended
from mova_engine.inference.given_clip import STRIDE, GivenClip, Kept, Window, fitted_shape, kept_frames
from mova_engine.inference.pipeline import (
    FIRST_STEP,
    LOADING,
    Pipeline,
    default_batch,
    load_pipeline,
)
from mova_engine.inference.process_mesh import choose_shape, join_processes
from mova_engine.inference.requests import Prompt, Request, make_requests, read_frame, read_keyframes, read_prompts
from mova_engine.inference.sample_folder import LISTING, SHEET_CLIPS, SampleFolder
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.sampling_memory import StepClock, choose_for_sampling
from mova_engine.inference.unfinished import run_name
from mova_engine.memory.chosen_memory import ChosenMemory
from mova_engine.ops import DTYPES

# The advice in the error message after a process has died.
REMEDY = "clips that metadata.jsonl lists are complete; the same command with --overwrite makes all of them anew"
# What is kept of pictures and sound, by what `SampleConfig.given` names.
_KEPT: dict[str | None, tuple[Kept, Kept]] = {
    None: ("none", "none"),
    "video": ("all", "none"),
    "audio": ("none", "all"),
}


def run(config: SampleConfig) -> int:
    """Sample clips as `config` says; returns 0. Raises MovaError for settings or files that cannot be used.

    All processes call this; only rank 0 prints and writes files.
    """
    launch = read_launch()
    if launch.world > 1:
        return _run_job(config, launch)
    with ended_at_once(lambda: _left(config)) as stop:
        return _run_job(config, launch, stop)


def _left(config: SampleConfig) -> str:
    """What there is of a run that was stopped, and how to go on."""
    listing = config.out / LISTING
    if not listing.is_file():
        return "no clip is complete; the same command makes all of them"
    then = "makes all of them anew" if config.overwrite else "goes on from there"
    return f"the clips that {listing} lists are complete; the same command {then}"


def _run_job(config: SampleConfig, launch: Launch, stop: StopRequest | None = None) -> int:
    with rank0_first(launch):
        job = read_job(config, launch)
        processes = join_processes(config.parallel, job.backend, launch, job.mesh)
    watch = Watch(launch, config.parallel.timeout, remedy=REMEDY)
    before = signal.signal(signal.SIGTERM, watch.stop) if launch.world > 1 else None
    try:
        with watch.guard():
            return _sample(job, processes, watch, stop)
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
    extension: Extension | None = None
    source: Clip | None = None

    @property
    def clip(self) -> ClipConfig:
        """The clips' shape."""
        return self.model.clip

    @property
    def name(self) -> str:
        """The run's, by all that decides its clips."""
        return run_name(self.config, self.folder, self.lora, self.settings, self.work, self.source)


def read_job(config: SampleConfig, launch: Launch) -> SamplingJob:
    """Read and check everything that needs no weights. Raises MovaError for what cannot be used."""
    backend = get_backend(config.device) if config.device else default_backend()
    console = Console(stderr=True, quiet=launch.rank > 0, soft_wrap=True, markup=False, highlight=False)
    folder, model = open_model(config.checkpoint, config.clip, console.print)
    lora = [parse_adapter(each, config.lora_alpha) for each in config.lora]
    for each in lora:
        require_adapter(each.path)
    settings = sample_settings(config, default_settings(model))
    if config.audio_alone:
        if launch.world > 1:
            raise MovaError("--audio-alone: sound is made by one process: leave torchrun out")
        check_form(settings.guidance)
    given = _given(config)
    if given is not None:
        shape, said = fitted_shape(given, model.clip, config.clip.frames is not None)
        model = replace(model, clip=shape)
        if said:
            console.print(said)
    work = _work(config, model.clip, given)
    mesh = choose_shape(config.parallel, launch, model, settings.guidance, len(work))
    settings = with_cache(config, folder, model, settings, lora, console.print)
    if settings.first_block is not None and launch.world > 1:
        raise MovaError("--cache adaptive is for one process; a planned one, --cache 1.6, serves several")
    extension, source = _extension(config, model.clip, launch)
    return SamplingJob(config, backend, folder, model, lora, settings, work, mesh, extension, source)


def _extension(config: SampleConfig, shape: ClipConfig, launch: Launch) -> tuple[Extension | None, Clip | None]:
    """How far clips are extended, and the clip from which they go on."""
    if config.seconds is None:
        return None, None
    if launch.world > 1:
        raise MovaError("--seconds: clips are extended by one process: leave torchrun out")
    extension, source = Extension.of(shape, config.seconds, config.overlap), None
    if config.extend is not None:
        # As many frames as the model's clips can have, 4n+1. Declared durations are rounded, mostly to 1 ms.
        frames = round(probe(config.extend).duration * shape.fps)
        length = max(1, (frames - 1) // STRIDE * STRIDE + 1)
        read = read_clip(config.extend, replace(shape, frames=length), silent="zeros")
        source = Clip(read.pictures, read.audio[: extension.sample(length)])
        if length >= extension.frames:
            raise MovaError(
                f"{config.extend} lasts {length / shape.fps:.3f} s already: --seconds is its length with what is added"
            )
        # Refused before any weight is loaded.
        extension.continued(source)
    return extension, source


def _sample(job: SamplingJob, processes: Processes, watch: Watch, stop: StopRequest | None) -> int:
    config, folder, backend, first = job.config, job.folder, job.backend, processes.is_first
    console = Console(stderr=True, quiet=not first, soft_wrap=True, markup=False, highlight=False)
    # The clips are divided among the data-parallel groups.
    batch = batch_of(job)
    chosen = choose_memory_of(job, processes, batch)
    if chosen is not None:
        console.print(chosen.words())
    out, run = None, None if stop is None else job.name
    if first:
        out = SampleFolder(config.out, job.clip, len(job.work), config.overwrite, sound=config.audio_alone, run=run)
        if out.written:
            console.print(f"{counted(out.written, 'clip')} of a run of this command that was stopped stay; going on")
            job = replace(job, work=job.work[out.written :])
    if not diffusion_settings(folder):
        console.print(f"{folder} does not say how it was trained: sampling it as the released models (velocity)")
    if diffusion_settings(folder).get("skip_first_frame") and any(_has_no_first_frame(p, job) for p, _ in job.work):
        console.print("warning: this model was trained with given first frames; without --image it gets a white one")
    watch.at("loading", watched=False)
    pipeline = open_job(job, processes, chosen, console)
    facts = {**facts_of_run(config, folder, job.settings, pipeline.schedule, job.lora), "run": run}
    backend.use_threads(config.threads, job.model.video.dim)
    backend.reset_peak_memory()
    started, clock = time.perf_counter(), StepClock(FIRST_STEP)
    _run(pipeline, job, batch, out, facts, console, watch, clock, stop)
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


def batch_of(job: SamplingJob) -> int:
    """How many clips are made at a time, by each data-parallel group."""
    if job.settings.first_block is not None:
        return 1
    return job.config.batch or default_batch(job.clip, -(-len(job.work) // job.mesh.data_parallel))


def choose_memory_of(job: SamplingJob, processes: Processes, batch: int) -> ChosenMemory | None:
    """What `choose_for_sampling` chooses for a job whose clips are made `batch` at a time."""
    config = job.config
    return choose_for_sampling(
        config.memory,
        job.folder,
        job.model,
        job.backend,
        dtype=None if config.dtype is None else DTYPES[config.dtype],
        evaluations=job.settings.guidance.evaluations,
        batch=batch,
        sequential=config.sequential_guidance,
        processes=processes,
        mesh=job.mesh,
        shard=config.parallel.shard,
        vram=config.vram,
        ram=config.ram,
        lora=job.lora,
    )


def open_job(job: SamplingJob, processes: Processes, chosen: ChosenMemory | None, console: Console) -> Pipeline:
    """The job's pipeline, with the options of its command. chosen: what the planner chose, where it was asked to."""
    config = job.config
    with console.status(Text(f"loading {job.folder}")):
        pipeline = load_pipeline(
            job.folder,
            job.backend,
            dtype=None if config.dtype is None else DTYPES[config.dtype],
            clip=job.clip,
            memory=config.memory if chosen is None else chosen.config,
            lora=job.lora,
            processes=processes,
            shard=config.parallel.shard,
            config=job.model,
        )
        # Loading takes longer in some processes than in others.
        processes.wait_for_first()
    pipeline.schedule = schedule_of(config, pipeline.schedule)
    sequential = config.sequential_guidance if chosen is None else chosen.sequential
    pipeline.options = replace(pipeline.options, batch_guidance=not sequential, video_every=config.video_every)
    return pipeline


def _work(config: SampleConfig, shape: ClipConfig, given: GivenClip | None) -> list[tuple[Prompt, Request]]:
    image = read_frame(config.image, shape) if config.image else None
    if given is not None:
        given.check(shape)
    from_file = given.path if given is not None else config.extend or config.image
    source = None if from_file is None else str(from_file)
    if config.prompts is None:
        prompts = [Prompt(config.prompt or "", image, source, given=given)]
    else:
        prompts = read_prompts(config.prompts, shape, _KEPT[config.given])
        if image is not None:
            if any(prompt.first_frame is not None for prompt in prompts):
                raise MovaError(f"--image and {config.prompts} both give first frames: leave --image out")
            prompts = [replace(prompt, first_frame=image, source=source) for prompt in prompts]
    last_frame = read_frame(config.last_image, shape) if config.last_image else None
    keyframes = read_keyframes(config.keyframe, shape)
    if last_frame is not None and any(index == shape.frames - 1 for index, _ in keyframes):
        raise MovaError("--last-image and a --keyframe both give the last picture: leave one of them out")
    count = len(prompts) if config.count is None else config.count
    return make_requests(prompts, count, config.seed, last_frame, keyframes)


def _given(config: SampleConfig) -> GivenClip | None:
    """What the command gives of its one clip."""
    if config.video is not None:
        return GivenClip.pictures(config.video)
    if config.audio is not None:
        return GivenClip.sound(config.audio)
    if config.retake is None or config.window is None:
        return None
    window = Window(*config.window)
    video: Kept = "all" if config.retake_of == "audio" else window
    return GivenClip(config.retake, video, "all" if config.retake_of == "video" else window)


def _has_no_first_frame(prompt: Prompt, job: SamplingJob) -> bool:
    if job.config.audio_alone or job.source is not None or prompt.first_frame is not None:
        return False
    return prompt.given is None or not kept_frames(prompt.given.video, job.clip)[0]


def _frames(clip: Clip | None) -> int:
    return 0 if clip is None else len(clip.pictures)


def _run(
    pipeline: Pipeline,
    job: SamplingJob,
    batch: int,
    out: SampleFolder | None,
    facts: dict,
    console: Console,
    watch: Watch,
    clock: StepClock,
    stop: StopRequest | None,
) -> None:
    """Make the clips; in the first process, write them to `out`."""
    work, settings, groups = job.work, job.settings, job.mesh.data_parallel
    turns = -(-len(work) // (batch * groups))
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        windows = 1 if job.extension is None else job.extension.windows(_frames(job.source))
        task = progress.add_task("sampling", total=turns * settings.count * windows)
        requests = [request for _, request in work]

        def at_stage(stage: str) -> None:
            clock.at(stage)
            watch.at(stage, watched=stage != LOADING)

        passes = np.zeros(2, int)

        def stepped(step: Step) -> None:
            passes[:] += step.video_passes
            clock.step()
            progress.advance(task)
            if stop is not None:
                stop.raise_if_asked()

        clips: Iterator[Clip | None]
        heard: dict[str, Any] = {"batch": batch, "on_step": stepped, "on_stage": at_stage}
        if job.config.audio_alone:
            clips = (Clip(None, sound) for sound in generate_sound(pipeline, requests, settings, **heard))
        elif job.extension is None:
            clips = pipeline.generate(requests, settings, **heard)
        else:
            clips = extended(pipeline, requests, settings, job.extension, source=job.source, **heard)
        for (prompt, request), clip in zip(work, clips, strict=True):
            if out is None or clip is None:
                continue
            facts_of_clip = {"seed": request.seed, "source": prompt.source, **facts_of_given(request.given), **facts}
            if is_solid(clip):
                facts_of_clip["solid_colour"] = True
                console.print(f"warning: clip {out.written} ('{shown(prompt.caption)}') stays one solid colour")
            out.add(clip, prompt.caption, facts_of_clip, request.given)
            progress.update(task, description=f"sampling, {out.written} of {len(work)} clips written")
    if settings.first_block is not None:
        console.print(f"step cache: {passes[1] - passes[0]} of {passes[1]} passes of the video tower were left out")
