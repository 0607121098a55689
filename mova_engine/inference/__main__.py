"""`python -m mova_engine.inference --checkpoint DIR --prompt TEXT [--image FILE]`: clips with sound, as mp4 files."""

import argparse
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from mova_engine.backend import NAMES, Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import diffusion_settings
from mova_engine.checkpoints.locate import find_adapters, open_model
from mova_engine.config.clip import add_clip_options, given_clip
from mova_engine.config.limits import check_threads
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import GUIDANCE_FORMS, ClipConfig, MovaConfig
from mova_engine.data.text import flaw
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.processes import Launch, Processes, rank0_first, read_launch
from mova_engine.distributed.watchdog import Watch
from mova_engine.errors import CommandParser, MovaError, counted, run_cli, suggest
from mova_engine.inference.parallel_options import (
    ParallelOptions,
    add_options,
    choose_shape,
    join_processes,
    read_options,
)
from mova_engine.inference.pipeline import (
    MOST_CLIPS,
    REFERENCE_NEGATIVE_PROMPT,
    Pipeline,
    SampleSettings,
    default_batch,
    default_settings,
    load_pipeline,
)
from mova_engine.inference.requests import Prompt, Request, make_requests, read_frame, read_prompts
from mova_engine.inference.sample_folder import SHEET_CLIPS, SampleFolder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The word for the reference's own negative prompt.
REFERENCE = "default"
# What to do when a process has died.
REMEDY = "clips that metadata.jsonl lists are complete; the same command with --overwrite makes all of them anew"


def main(argv: Sequence[str] | None = None) -> int:
    """Sample clips as the command line asks; returns 0. Raises MovaError for whatever is wrong with its arguments.

    Of several processes, all of which run this, the first alone speaks and writes.
    """
    launch = read_launch()
    with rank0_first(launch):
        job = _read(argv, launch)
        processes = join_processes(job.parallel, job.backend, launch, job.mesh)
    watch = Watch(launch, job.parallel.timeout, remedy=REMEDY)
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
class _Job:
    """What the command line asks for."""

    args: argparse.Namespace
    backend: Backend
    folder: Path
    config: MovaConfig
    shape: ClipConfig
    settings: SampleSettings
    work: list[tuple[Prompt, Request]]
    parallel: ParallelOptions
    mesh: MeshShape


def _read(argv: Sequence[str] | None, launch: Launch) -> _Job:
    """Everything that can be wrong before anything is loaded."""
    args = _parser().parse_args(argv)
    if args.dtype is not None and args.dtype not in DTYPES:
        raise MovaError(f"unknown dtype '{args.dtype}'.{suggest(args.dtype, DTYPES)} Known: {', '.join(DTYPES)}")
    backend = get_backend(args.device) if args.device else default_backend()
    console = Console(stderr=True, quiet=launch.rank > 0, soft_wrap=True, markup=False, highlight=False)
    folder, config = open_model(args.checkpoint, given_clip(args), console.print)
    if args.lora is None and args.lora_alpha is not None:
        raise MovaError("--lora-alpha has no effect without --lora")
    if args.lora is not None:
        args.lora = find_adapters(args.lora, console.print)
    shape = config.clip
    settings = _settings(args, default_settings(config))
    if args.batch is not None and args.batch < 1:
        raise MovaError(f"batch must be at least 1, got {args.batch}")
    check_threads(args.threads)
    work, parallel = _work(args, shape), read_options(args)
    mesh = choose_shape(parallel, launch, config, settings.guidance, len(work))
    return _Job(args, backend, folder, config, shape, settings, work, parallel, mesh)


def _sample(job: _Job, processes: Processes, watch: Watch) -> int:
    args, folder, backend, first = job.args, job.folder, job.backend, processes.is_first
    out = SampleFolder(args.out, job.shape, len(job.work), args.overwrite) if first else None
    console = Console(stderr=True, quiet=not first, soft_wrap=True, markup=False, highlight=False)
    if not diffusion_settings(folder):
        console.print(f"{folder} does not say how it was trained: sampling it as the released models are, by velocity")
    if diffusion_settings(folder).get("skip_first_frame") and any(p.first_frame is None for p, _ in job.work):
        console.print("warning: this model goes on from a given first frame; without --image it gets a white one")
    watch.at("loading", watched=False)
    with console.status(Text(f"loading {folder}")):
        pipeline = load_pipeline(
            folder,
            backend,
            dtype=DTYPES.get(args.dtype),
            clip=job.shape,
            offload=args.offload,
            processes=processes,
            shard=job.parallel.shard,
            config=job.config,
            **_given(args, "lora", "lora_alpha"),
        )
        # Not all of them have as much to load, or as fast a disk.
        processes.wait_for_first()
    pipeline.schedule = _schedule(args, pipeline.schedule)
    pipeline.options = replace(pipeline.options, batch_guidance=not args.sequential_guidance)
    # Spread over the groups of processes that make different ones.
    batch = args.batch or default_batch(job.shape, -(-len(job.work) // job.mesh.data_parallel))
    facts = _facts(folder, job.settings, pipeline.schedule)
    backend.use_threads(args.threads, job.config.video.dim)
    started = time.perf_counter()
    _run(pipeline, job, batch, out, facts, console, watch)
    if out is None:
        return 0
    sheet, seconds = out.finish(), time.perf_counter() - started
    several = f", {processes.launch.world} processes: {job.mesh}" if processes.launch.world > 1 else ""
    how = f"{backend.name}, batch {batch}{several}"
    made, shown = len(job.work), f" (of the first {SHEET_CLIPS})" if len(job.work) > SHEET_CLIPS else ""
    print(f"{counted(made, 'clip')} in {out.folder} in {seconds:.1f} s ({how}); to look at: {sheet}{shown}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m mova_engine.inference", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    folders = "model folder, training run (its newest checkpoint) or Hugging Face cache folder"
    add("--checkpoint", type=Path, required=True, metavar="DIR", help=folders)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="what to show and sound")
    what.add_argument(
        "--prompts",
        type=Path,
        metavar="PATH",
        help="folder of clips (caption and first frame of each), or .txt with one prompt a line",
    )
    add("--image", type=Path, metavar="FILE", help="first frame: a picture, or a video's first one (default: white)")
    add("--last-image", type=Path, metavar="FILE", help="last frame, likewise (default: free)")
    add("--out", type=Path, default=Path("samples"), metavar="DIR", help="where to write (default: samples)")
    add("--overwrite", action="store_true", help="replace samples that are there already")
    add("--count", type=int, metavar="N", help="clips to make, prompts taken in turn (default: one of each)")
    add("--seed", type=int, default=0, metavar="S", help="clip i has seed S + i (default 0)")
    add("--steps", type=int, metavar="N", help="denoising steps (default: the model's, mostly 50)")
    add("--guidance", metavar="FORM", help=f"{', '.join(GUIDANCE_FORMS)} (default: the model's, mostly text)")
    add("--text-scale", type=float, metavar="X", help="strength of guidance by text (default 5)")
    add("--bridge-scale", type=float, metavar="X", help="strength of guidance by the bridge, for dual (default 1)")
    negative = f"what guidance steers away from; {REFERENCE}: what MOVA's own scripts take (default: the empty prompt)"
    add("--negative-prompt", metavar="TEXT", help=negative)
    add("--video-shift", type=float, metavar="X", help="sigma shift of the video (default: the training's)")
    add("--audio-shift", type=float, metavar="X", help="sigma shift of the sound (default: the training's)")
    add_clip_options(parser)
    add("--batch", type=int, metavar="N", help=f"clips at a time (default: up to {MOST_CLIPS} small ones, one large)")
    add("--device", help=f"{', '.join(NAMES)} (default: the first of npu, cuda, cpu that works)")
    add("--dtype", help=f"{' or '.join(DTYPES)}, what the towers compute in (default: as stored)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: one for narrow models, else PyTorch's choice)")
    add("--lora", type=Path, metavar="PATH", help="adapters to add to the model: a LoRA run, its checkpoint, or a file")
    add("--lora-alpha", type=float, metavar="X", help="their alpha instead of the file's own")
    add("--offload", action="store_true", help="keep the expert that is not in use on the CPU, to save memory")
    add("--sequential-guidance", action="store_true", help="one evaluation at a time, to save memory")
    add_options(parser)
    return parser


def _given(args: argparse.Namespace, *names: str) -> dict:
    """Those of the named options that the command line gives."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _schedule(args: argparse.Namespace, schedule: Schedule) -> Schedule:
    return replace(schedule, **_given(args, "video_shift", "audio_shift"))


def _settings(args: argparse.Namespace, defaults: SampleSettings) -> SampleSettings:
    guidance = Guidance(args.guidance) if args.guidance else defaults.guidance
    takes = {"none": (), "text": ("text",), "text_bridge": ("text",), "dual": ("text", "bridge")}[guidance.form]
    for name in ("text", "bridge"):
        if getattr(args, f"{name}_scale") is not None and name not in takes:
            raise MovaError(f"--{name}-scale has no effect with guidance '{guidance.form}'")
    if args.negative_prompt == REFERENCE:
        args.negative_prompt = REFERENCE_NEGATIVE_PROMPT
    if args.negative_prompt and guidance.form == "none":
        raise MovaError("--negative-prompt has no effect with guidance 'none'")
    if reason := flaw(args.negative_prompt or ""):
        raise MovaError(f"--negative-prompt {reason}")
    guidance = replace(guidance, **_given(args, "text_scale", "bridge_scale"))
    return replace(defaults, guidance=guidance, **_given(args, "steps", "negative_prompt"))


def _work(args: argparse.Namespace, shape: ClipConfig) -> list[tuple[Prompt, Request]]:
    image = read_frame(args.image, shape) if args.image else None
    source = str(args.image) if args.image else None
    if args.prompts is None:
        prompts = [Prompt(args.prompt, image, source)]
    else:
        prompts = read_prompts(args.prompts, shape)
        if image is not None:
            if any(prompt.first_frame is not None for prompt in prompts):
                raise MovaError(f"--image and {args.prompts} both give first frames: leave --image out")
            prompts = [Prompt(prompt.caption, image, source) for prompt in prompts]
    last_frame = read_frame(args.last_image, shape) if args.last_image else None
    count = len(prompts) if args.count is None else args.count
    return make_requests(prompts, count, args.seed, last_frame)


def _facts(folder: Path, settings: SampleSettings, schedule: Schedule) -> dict:
    """What every row of the output's metadata says of how its clip was made."""
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
    }


def _run(
    pipeline: Pipeline, job: _Job, batch: int, out: SampleFolder | None, facts: dict, console: Console, watch: Watch
) -> None:
    """Make the clips; in the first process, write them to `out`."""
    work, settings, groups = job.work, job.settings, job.mesh.data_parallel
    turns = -(-len(work) // (batch * groups))
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("steps"), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task("sampling", total=turns * settings.steps)
        requests = [request for _, request in work]
        clips = pipeline.generate(
            requests, settings, batch=batch, on_step=lambda _: progress.advance(task), on_stage=watch.at
        )
        for (prompt, request), clip in zip(work, clips, strict=True):
            if out is None:
                continue
            out.add(clip, prompt.caption, {"seed": request.seed, "source": prompt.source, **facts})
            progress.update(task, description=f"sampling, {out.written} of {len(work)} clips written")


if __name__ == "__main__":
    run_cli(main)
