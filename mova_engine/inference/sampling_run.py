"""A sampling run, in one process or several: from the command's settings to mp4 files."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mova_engine.checkpoints.folder import diffusion_settings
from mova_engine.config.memory import VAE_STRIDE, VAE_TILE
from mova_engine.config.sample import SampleConfig
from mova_engine.data.media.clip_manifest import ClipManifest
from mova_engine.data.media.decode import Clip
from mova_engine.data.media.provenance import PACKAGES
from mova_engine.data.media.signer import Signer
from mova_engine.data.text import shown
from mova_engine.distributed.processes import Launch, Processes, rank0_first, read_launch
from mova_engine.distributed.stop_signals import StopRequest, ended_at_once
from mova_engine.distributed.watchdog import Watch
from mova_engine.errors import counted
from mova_engine.files.byte_ranges import without_query
from mova_engine.inference.audio_alone import generate_sound
from mova_engine.inference.clip_facts import facts_of_enhanced, facts_of_given, facts_of_run
from mova_engine.inference.clip_generator import FIRST_STEP, LOADING
from mova_engine.inference.clip_manifests import SampledManifests, records_of, signer_of
from mova_engine.inference.command_settings import attention_of, schedule_of
from mova_engine.inference.denoising import Step
from mova_engine.inference.encoded_clip import SHEET_CLIPS, EncodedClip, encoded_sound, sample_encoders
from mova_engine.inference.extension import extended
from mova_engine.inference.given_clip import kept_frames
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.process_mesh import join_processes
from mova_engine.inference.prompts.enhanced_prompt import EnhancedPrompt
from mova_engine.inference.prompts.prompt_enhancer import PromptEnhancer
from mova_engine.inference.prompts.text_limit import text_limit
from mova_engine.inference.remade_clip import RemadeClip
from mova_engine.inference.requests import Prompt
from mova_engine.inference.sample_folder import LISTING, SampleFolder
from mova_engine.inference.sampling_job import SamplingJob, batch_of, read_job, with_enhanced
from mova_engine.inference.sampling_memory import StepClock, choose_for_sampling, kept_of
from mova_engine.memory.chosen_memory import ChosenMemory
from mova_engine.ops import DTYPES

# The advice in the error message after a process has died.
REMEDY = "clips that metadata.jsonl lists are complete; the same command with --overwrite makes all of them anew"
# What is said where the packages that sign are missing.
UNSIGNED = f"clips are not signed: pip install {' '.join(PACKAGES.values())} signs them, --no-provenance leaves it out"
# What is said of tiles.
TILES = (
    f"video VAE in tiles of {VAE_TILE * VAE_STRIDE} pixels, blended where both are right: seams are off by rounding at "
    "most"
)


def run(config: SampleConfig, manifest: Path | None = None) -> int:
    """Sample clips as `config` says; returns 0. Raises MovaError for settings or files that cannot be used.

    manifest: of a clip that is made again, whose settings `config` has. Returns 1 where the clip is another one.

    All processes call this; only rank 0 prints and writes files.
    """
    launch = read_launch()
    remade = None if manifest is None else RemadeClip.read(manifest, config)
    if launch.world > 1:
        return _run_job(config, launch, remade)
    with ended_at_once(lambda: _left(config)) as stop:
        return _run_job(config, launch, remade, stop)


def _left(config: SampleConfig) -> str:
    """What there is of a run that was stopped, and how to go on."""
    listing = config.out / LISTING
    if not listing.is_file():
        return "no clip is complete; the same command makes all of them"
    then = "makes all of them anew" if config.overwrite else "goes on from there"
    return f"the clips that {listing} lists are complete; the same command {then}"


def _run_job(config: SampleConfig, launch: Launch, remade: RemadeClip | None, stop: StopRequest | None = None) -> int:
    with rank0_first(launch):
        job = read_job(config, launch)
        enhancer = _enhancer(job)
        signer = signer_of(config) if launch.rank == 0 else None
        processes = join_processes(config.parallel, job.backend, launch, job.mesh)
    watch = Watch(launch, config.parallel.timeout, remedy=REMEDY)
    before = signal.signal(signal.SIGTERM, watch.stop) if launch.world > 1 else None
    try:
        with watch.guard():
            if enhancer is not None:
                job = _enhanced(job, enhancer, processes, watch, stop)
            return _sample(job, processes, watch, stop, remade, signer)
    finally:
        watch.close()
        processes.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _enhancer(job: SamplingJob) -> PromptEnhancer | None:
    settings = job.config.enhance
    if settings.backend == "none":
        return None
    return PromptEnhancer(settings, text_limit(job.folder, job.model), job.backend)


def _enhanced(
    job: SamplingJob, enhancer: PromptEnhancer, processes: Processes, watch: Watch, stop: StopRequest | None
) -> SamplingJob:
    """The job with its prompts enhanced, by the first process for all, before a weight of the model is loaded."""
    watch.at("enhancing prompts", watched=False)
    console = _console(processes)
    found: list[EnhancedPrompt] | None = None
    if processes.is_first:
        settings = job.config.enhance
        where = settings.url if settings.backend == "endpoint" else settings.model
        with console.status(Text(f"enhancing {counted(len(job.work), 'prompt')} by {without_query(where)}")):
            found = enhancer.enhance_all([(request.caption, request.first_frame) for _, request in job.work])
        for text in dict.fromkeys(f"'{shown(each.original)}': {each.warning}" for each in found if each.warning):
            console.print(f"warning: prompt {text}")
        used = sum(each.used == "enhanced" for each in found)
        console.print(f"{used} of {counted(len(found), 'prompt')} enhanced by {found[0].model}, the others as they are")
    if stop is not None:
        stop.raise_if_asked()
    first = processes.all_gather_object(found)[0]
    return with_enhanced(job, first)


def _console(processes: Processes) -> Console:
    return Console(stderr=True, quiet=not processes.is_first, soft_wrap=True, markup=False, highlight=False)


def _sample(
    job: SamplingJob,
    processes: Processes,
    watch: Watch,
    stop: StopRequest | None,
    remade: RemadeClip | None,
    signer: Signer | None,
) -> int:
    config, folder, backend, first = job.config, job.folder, job.backend, processes.is_first
    console = _console(processes)
    kept = None
    if remade is not None:
        job, kept = remade.job(job)
    # The clips are divided among the data-parallel groups.
    batch = batch_of(job)
    chosen = choose_memory_of(job, processes, batch)
    if chosen is not None:
        console.print(chosen.words())
    out, run = None, None if stop is None or remade is not None else job.name
    if first:
        count = len(job.work) if remade is None else 1
        out = SampleFolder(config.out, job.clip, count, config.overwrite, sound=config.audio_alone, run=run)
        if out.written:
            console.print(f"{counted(out.written, 'clip')} of a run of this command that was stopped stay; going on")
            job = replace(job, work=job.work[out.written :], enhanced=job.enhanced[out.written :])
    if (config.memory if chosen is None else chosen.config).vae == "tiles":
        console.print(TILES)
    if not diffusion_settings(folder):
        console.print(f"{folder} does not say how it was trained: sampling it as the released models (velocity)")
    if diffusion_settings(folder).get("skip_first_frame") and any(_has_no_first_frame(p, job) for p, _ in job.work):
        console.print("warning: this model was trained with given first frames; without --image it gets a white one")
    watch.at("loading", watched=False)
    pipeline = open_job(job, processes, chosen, console)
    facts = {**facts_of_run(config, folder, job.settings, pipeline.schedule, job.lora), "run": run}
    backend.use_threads(config.threads, job.model.video.dim)
    records = None
    if first:
        if signer is None and not config.no_provenance:
            console.print(UNSIGNED)
        with console.status(Text(f"SHA-256 of {folder} (kept for the next time)")):
            records = records_of(job, batch, chosen, facts, signer)
    if remade is not None and records is not None:
        records = replace(records, original_prompt=remade.manifest.original_prompt)
        for line in remade.differences(records.manifest(kept or 0)):
            console.print(f"warning: {line}")
    backend.reset_peak_memory()
    started, clock = time.perf_counter(), StepClock(FIRST_STEP)
    written = _run(pipeline, job, batch, out, records, facts, console, watch, clock, stop, kept)
    if chosen is not None:
        console.print(chosen.outcome(backend.peak_memory(), clock.mean))
    if out is None:
        return 0
    sheet, seconds = out.finish(), time.perf_counter() - started
    several = f", {processes.launch.world} processes: {job.mesh}" if processes.launch.world > 1 else ""
    how = f"{backend.name}, batch {batch}{several}"
    made, shown = len(written), f" (of the first {SHEET_CLIPS})" if len(job.work) > SHEET_CLIPS else ""
    print(f"{counted(made, 'clip')} in {out.folder} in {seconds:.1f} s ({how}); to look at: {sheet}{shown}")
    if remade is None:
        return 0
    same, line = remade.outcome(written[0])
    print(line)
    return 0 if same else 1


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
        kept=kept_of(config, job.settings),
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
    pipeline.options = replace(
        pipeline.options,
        batch_guidance=not sequential,
        video_every=config.video_every,
        attention=attention_of(config),
    )
    return pipeline


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
    records: SampledManifests | None,
    facts: dict,
    console: Console,
    watch: Watch,
    clock: StepClock,
    stop: StopRequest | None,
    kept: int | None,
) -> list[ClipManifest]:
    """Make the clips; in the first process, write them to `out`, and return their manifests. kept: the place of the one
    that is written; None: all are.
    """
    written = list[ClipManifest]()
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
            if stop is not None:
                stop.raise_if_asked()

        passes = np.zeros(2, int)

        def stepped(step: Step) -> None:
            passes[:] += step.video_passes
            clock.step()
            progress.advance(task)

        clips: Iterator[EncodedClip | None]
        heard: dict[str, Any] = {"batch": batch, "on_step": stepped, "on_stage": at_stage}
        frames = job.clip.frames if job.extension is None else job.extension.frames
        encoders = sample_encoders(job.clip, frames, len(work) + (0 if out is None else out.written))
        if job.config.audio_alone:
            sounds = generate_sound(pipeline, requests, settings, **heard)
            clips = (encoded_sound(sound, job.clip) for sound in sounds)
        elif job.extension is None:
            clips = pipeline.generate_into(encoders, requests, settings, **heard)
        else:
            clips = extended(pipeline, encoders, requests, settings, job.extension, source=job.source, **heard)
        texts = job.enhanced or [None] * len(work)
        for index, ((prompt, request), text, clip) in enumerate(zip(work, texts, clips, strict=True)):
            if out is None or records is None or clip is None or kept not in (None, index):
                continue
            given = {**facts_of_given(request.given), **facts_of_enhanced(text)}
            facts_of_clip = {"seed": request.seed, "source": prompt.source, **given, **facts}
            if clip.solid:
                facts_of_clip["solid_colour"] = True
                console.print(f"warning: clip {out.written} ('{shown(prompt.caption)}') stays one solid colour")

            def described(name: str, data: bytes, index: int = index) -> tuple[bytes, ClipManifest]:
                made, manifest = records.file(records.manifest(index), name, data)
                written.append(manifest)
                return made, manifest

            out.add(clip, prompt.caption, facts_of_clip, described)
            progress.update(task, description=f"sampling, {out.written} of {out.clips} clips written")
    if pipeline.options.attention is not None:
        console.print(pipeline.options.attention.words())
    if settings.first_block is not None:
        console.print(f"step cache: {passes[1] - passes[0]} of {passes[1]} passes of the video tower were left out")
    return written
