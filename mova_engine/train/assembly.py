"""Builds the parts of a training run from its configuration: device, operators, clips, model, optimizer, resumed
state.
"""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mova_engine.adapters.lora import linear_layers
from mova_engine.adapters.reading import read_adapter, say_other_base
from mova_engine.backend import Backend, default_backend, get_backend
from mova_engine.checkpoints.folder import Codecs
from mova_engine.checkpoints.locate import ADAPTERS, with_index
from mova_engine.config.command import to_plain
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ACTIVE_COMPONENTS, ClipConfig, MovaConfig
from mova_engine.config.recipes import with_defaults
from mova_engine.config.train import TrainConfig
from mova_engine.data.bucketed import BucketedClips, bucket_table
from mova_engine.data.loader import Loader
from mova_engine.data.mixture import MixedClips
from mova_engine.distributed.background import Background
from mova_engine.distributed.processes import Launch, Processes, start_processes
from mova_engine.errors import MovaError, counted
from mova_engine.memory.quantised import within_layers
from mova_engine.memory.residency import Residency
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, OPERATORS, REFERENCE, OpTable, bind
from mova_engine.ops.determinism import deterministic_operators
from mova_engine.predict.flops import training_flops
from mova_engine.train.batch import BatchBuilder
from mova_engine.train.bucket_data import Progress as Report
from mova_engine.train.bucket_data import sort_sources
from mova_engine.train.clip_data import (
    build_codecs,
    heldout_source,
    open_loader,
    open_mix,
    training_sources,
)
from mova_engine.train.elastic import may_restart, worlds_that_fit
from mova_engine.train.fp8_watch import Fp8Watch
from mova_engine.train.lora_model import base_folder
from mova_engine.train.masters import Weights
from mova_engine.train.model_setup import build_model, model_config
from mova_engine.train.optimizer import build_optimizer
from mova_engine.train.preflight import check_before_work
from mova_engine.train.rank_agreement import agree_on_data
from mova_engine.train.timestep_sampling import rank_seed
from mova_engine.train.training_state import TrainingState, differences, load_checkpoint
from mova_engine.train.validation import Validator, read_own_prompts


@dataclass
class TrainingRun:
    """The parts of a training run.

    residency: moves the codecs, which wait on the host, to the device. fp8: which layers multiply in it. saver: writes
    checkpoints of sharded weights in the background. resumed: state.json of the checkpoint that the run resumes from;
    None for a new run.
    """

    config: TrainConfig
    backend: Backend
    ops: OpTable
    model: Mova
    codecs: Codecs
    residency: Residency
    loader: Loader
    build: BatchBuilder
    validator: Validator | None
    state: TrainingState
    processes: Processes
    fp8: Fp8Watch
    saver: Background
    resumed: dict[str, Any] | None

    @property
    def sizes(self) -> MovaConfig:
        return self.model.config

    def flops_per_step(self, clip: ClipConfig) -> int:
        """Model FLOPs (forward, backward, no recomputation) of one optimizer step on clips of one shape."""
        parts = ACTIVE_COMPONENTS if self.config.task == "joint" else ("audio_dit",)
        if not self.config.model.bridge:
            parts = tuple(part for part in parts if part != "dual_tower_bridge")
        rank = self.config.lora.rank or None
        sizes = replace(self.sizes, clip=clip)
        return training_flops(sizes, components=parts, lora_rank=rank).model * self.clips_per_step

    def tokens_per_step(self, clip: ClipConfig) -> int:
        """Video and audio tokens of one optimizer step on clips of one shape."""
        video = clip.video_tokens if self.config.task == "joint" else 0
        return (video + clip.audio_tokens) * self.clips_per_step

    @property
    def clips_per_step(self) -> int:
        """Clips of one optimizer step, over all processes."""
        return self.config.clips_per_step(self.processes.shape)


def join_processes(config: TrainConfig, launch: Launch) -> Processes:
    """Join the other processes of the run, if torchrun started several.

    Raises the same MovaError in all processes if their number or the clips of a step do not allow the mesh.
    """
    if config.deterministic:
        device_of(config).require_determinism()
    try:
        shape = mesh_of(config, launch.world)
    except MovaError as error:
        fit = worlds_that_fit(lambda world: mesh_of(config, world), launch.world) if may_restart() else ""
        raise MovaError(f"{error}{fit}") from error
    return start_processes(device_of(config), launch, shape, config.parallel.timeout)


def mesh_of(config: TrainConfig, world: int) -> MeshShape:
    """The mesh that a run makes of `world` processes. Raises MovaError as `TrainConfig.mesh`."""
    return config.mesh(model_config(config).video.num_heads, world)


def device_of(config: TrainConfig) -> Backend:
    """The backend of the run's device: the one that is named, or the best that works."""
    return get_backend(config.device) if config.device else default_backend()


def assemble(config: TrainConfig, resume: Path | None, console: Console, processes: Processes) -> TrainingRun:
    """Build a run and restore the checkpoint `resume` into it, if any. Prints what it does on `console`."""
    backend = device_of(config)
    device = backend.device(processes.launch.local_rank)
    _say_precision(config, backend, console)
    # The engine has its own generators; the global ones are seeded for operators and models of the user.
    seed = rank_seed(config.seed, processes.data_rank)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    choices = config.operator_choices
    known = deterministic_operators(OPERATORS, choices) if config.deterministic else OPERATORS
    ops = processes.operators(bind(backend, choices, dtypes=(DTYPES[config.dtype],), operators=known))
    sizes = model_config(config)
    check_before_work(config, sizes, ops, resume)
    _say_other_bases(config, resume, console)
    prompts = read_own_prompts(config.validation, sizes.clip)
    backend.use_threads(config.threads, sizes.video.dim)
    with _progress(console) as report, processes.first_alone():
        data = training_sources(config, sizes, report)
        # A checkpoint of adapters holds no codecs, nor does an older one of the audio tower alone.
        source = with_index(resume) or config.model.checkpoint
        by_bucket = sort_sources(config, sizes, data, report)
        held_data = heldout_source(config, sizes, report)
        held_by_bucket = sort_sources(config, sizes, held_data, report) if held_data is not None else ()
    codecs, residency = build_codecs(config, sizes, source, data, device, by_bucket)
    if held_data is None and config.validation.every and not prompts:
        console.print("note: no validation, no samples on the way: --validation.data names a folder of held-out clips")
    # All processes encode; each starts at a different clip.
    with _progress(console) as report:
        ahead = config.loader.encode == "ahead"
        clips = open_mix(config, sizes, codecs, residency, data, report, processes, ahead, by_bucket)
        heldout = None
        if held_data is not None:
            heldout = open_mix(
                config, sizes, codecs, residency, held_data, report, processes, sorted_clips=held_by_bucket
            )
    agree_on_data(codecs, clips, heldout, processes)
    build = BatchBuilder(clips.cache.empty_text(), device, audio_only=config.task == "audio")
    validator = None
    if heldout is not None or prompts:
        validator = Validator(config, heldout, build, prompts, processes.sharding)
        with processes.first_alone():
            # With sharded weights all processes run the sampling, and only the first keeps the result.
            if processes.is_first or config.parallel.shard:
                validator.encode(sizes.clip, codecs, residency)
    if ahead:
        residency.drop_unused()
    elif any(codec is not None and codec.weights is not None for codec in codecs):
        console.print("note: loader.encode online keeps text encoder and codecs on the device")
    loader = open_loader(config, clips, processes.shape, processes.data_rank, processes.rounds)
    model, shards = build_model(config, sizes, ops, device, processes, fill=resume is None)
    model.train()
    weights = Weights(model, DTYPES[config.dtype], config.optim.ema, shards)
    group = None if shards is None else shards.group
    optimizer = build_optimizer(weights.masters, config.optim, ops, DTYPES[config.dtype], group)
    state = TrainingState(weights, optimizer, backend)
    run = TrainingRun(
        config=config,
        backend=backend,
        ops=ops,
        model=model,
        codecs=codecs,
        residency=residency,
        loader=loader,
        build=build,
        validator=validator,
        state=state,
        processes=processes,
        fp8=Fp8Watch(config, model, processes),
        saver=Background(processes, config.parallel.timeout if shards is not None else None),
        resumed=None,
    )
    if resume is not None:
        run.resumed = load_checkpoint(resume, state)
        run.fp8.load_state_dict(run.resumed["progress"].get("fp8", {}))
        for line in loader.load_state_dict(run.resumed["progress"]["loader"], config.loader.changed):
            console.print(f"note: {line}")
        for line in differences(with_defaults(run.resumed["config"]), to_plain(config)):
            console.print(f"note: not as in {resume.name}: {line}")
    _describe(run, len(clips), console)
    if isinstance(clips, BucketedClips):
        shared = processes.shape.clip_ranks
        for line in bucket_table(clips.rows, len(clips.left_out), run.clips_per_step, shared):
            console.print(line)
    elif isinstance(clips, MixedClips):
        console.print(f"mixed by weight: {clips.words}")
    return run


def _say_other_bases(config: TrainConfig, resume: Path | None, console: Console) -> None:
    """A warning where the adapters that the run starts or goes on from were trained on another model."""
    source = config.lora.init if resume is None else resume / ADAPTERS
    if config.lora.rank and source is not None and source.is_file():
        adapter = read_adapter(source, alpha=config.lora.alpha)
        say_other_base(adapter, base_folder(config), source, lambda line: console.print(f"warning: {line}"))


def _say_precision(config: TrainConfig, backend: Backend, console: Console) -> None:
    if DTYPES[config.dtype] in backend.slow_dtypes():
        console.print(f"note: this {backend.name} has no arithmetic in {config.dtype}: --dtype float32 is faster")
    products = DTYPES.get(config.optim.newton_schulz_dtype)
    if config.optim.name == "muon" and products in backend.slow_dtypes():
        console.print(
            f"note: this {backend.name} has no arithmetic in {config.optim.newton_schulz_dtype}: "
            "--optim.newton-schulz-dtype float32 is faster"
        )
    if config.exact_fp32:
        for found in backend.require_full_precision():
            console.print(f"exact fp32: {found.switch} {'switched off' if found.was_on else 'was off'}")


def _describe(run: TrainingRun, clips: int, console: Console) -> None:
    config, sizes = run.config, run.sizes
    counts: dict[str, int] = {}
    for weight in run.state.weights.masters:
        counts[weight.component] = counts.get(weight.component, 0) + math.prod(weight.piece.shape)
    parts = ", ".join(f"{name} {_millions(count)}" for name, count in counts.items())
    what = f"adapters of rank {config.lora.rank} for {sizes.name}" if config.lora.rank else sizes.name
    console.print(f"{what}: {_millions(sum(counts.values()))} parameters ({parts}), {config.dtype}")
    if config.lora.rank:
        layers = linear_layers(run.model)
        held = sorted({x.weight_format.name for x in layers.values() if x.weight_format is not None})
        plain = [name for name, x in layers.items() if x.weight_format is None and within_layers(name)] if held else []
        kept = f" in {', '.join(held)}" if held else ""
        kept += f" ({len(plain)} layers in {config.dtype}, {plain[0]} the first)" if plain else ""
        start = f"; adapters start from {config.lora.init}" if config.lora.init else ""
        console.print(f"frozen weights{kept}: {config.model.checkpoint}{start}")
    console.print(f"device {run.backend.name}: {run.backend.describe()}")
    chosen = [c.label for c in run.ops.choices if c.implementation != REFERENCE]
    console.print(f"operators other than the reference: {', '.join(chosen) or 'none'}")
    if run.fp8.layers:
        console.print(run.fp8.words())
    if run.processes.launch.world > 1:
        sharded = "" if run.state.weights.shards is None else ", weights sharded"
        console.print(f"{run.processes.launch.world} processes: {run.processes.shape}{sharded}")
    if config.buckets.given:
        console.print(f"{counted(clips, 'clip')} in buckets; {run.clips_per_step} of one bucket a step")
        return
    clip = sizes.clip
    tera = run.flops_per_step(clip) / 1e12
    pictures = f"{clip.frames} frames of {clip.height}x{clip.width}"
    seen = pictures if config.task == "joint" else f"{clip.duration:.2f} s"
    step = f"{run.clips_per_step} a step, {run.tokens_per_step(clip)} tokens, {tera:.4g} TFLOP"
    console.print(f"{counted(clips, 'clip')} of {seen}; {step}")


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 1e9 else f"{count / 1e9:.3f} B"


@contextmanager
def _progress(console: Console) -> Iterator[Report]:
    """Yield a function that reports progress: a bar for each job at a terminal, else one line when a job is done."""
    if not console.is_terminal:
        yield lambda done, total, what: console.print(f"{what}: {counted(total, 'clip')}") if done == total else None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def report(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield report
