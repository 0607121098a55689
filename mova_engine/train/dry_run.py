"""Dry run of a training step at full size: the run's own code on fake tensors, as one rank of many."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from mova_engine.checkpoints.folder import listed_components
from mova_engine.checkpoints.quantised_files import base_of
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import COMPONENTS, MovaConfig
from mova_engine.config.recipes import TRAIN
from mova_engine.config.train import TrainConfig
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.ops import DTYPES, OpTable
from mova_engine.ops.machine import Machine, assumed_machine
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.job import PlannedRun, layout_of, training_job
from mova_engine.predict.memory_use import Memory, memory
from mova_engine.rehearsal.absent_files import take_slots
from mova_engine.rehearsal.absent_weights import AbsentComponent, absent_components, hold_absent
from mova_engine.rehearsal.memory_tracker import AVERAGE, GRADIENTS, INPUTS, MOMENTS, PARAMETERS
from mova_engine.rehearsal.result import Rehearsal
from mova_engine.rehearsal.stage import Stage
from mova_engine.rehearsal.step_clock import Clock
from mova_engine.rehearsal.weights import local_tensors, with_layers
from mova_engine.train import lora_model
from mova_engine.train.assembly import mesh_of
from mova_engine.train.batch import BatchBuilder, LatentBatch
from mova_engine.train.masters import Weights
from mova_engine.train.model_setup import build_model, largest_clip, model_config
from mova_engine.train.optimizer import build_optimizer
from mova_engine.train.preflight import check_stored
from mova_engine.train.simulation import simulate
from mova_engine.train.step import Updater

# Settings of memory that may place tensors on the host.
_HOST_SETTINGS = ("inputs", "saved", "weights", "optimizer")
# From the second micro-batch on, gradients are in memory together with activations.
_MICRO_BATCHES = 2


def dry_run_training(
    config: TrainConfig,
    machine: Machine,
    world_size: int = 1,
    layers: int | None = None,
    stored: str | None = None,
    clock: str | None = None,
) -> Rehearsal:
    """Build the run's model on fake tensors as rank 0 of `world_size`, and run one optimizer step.

    The step is not the first one: the optimizer's moments exist. At most two micro-batches are run. machine: the
    assumed machine. layers: number of layers of each tower, for a quick run; None: all. stored: how the files of a
    checkpoint that is not here hold the weights of layers; None: plain. clock: a device of `predict.hardware` by whose
    rates the step is timed; None: it is not. Call it in a process that is prepared for the machine's kind of device
    (`rehearsal.fake_devices`). Only sizes and headers of a checkpoint are read. Raises MovaError as the run itself
    would.
    """
    config.memory.check_decided()
    components = _components(config, stored)
    shape = mesh_of(config, world_size)
    sizes = with_layers(largest_clip(config, model_config(config)), layers)
    micro_batches = config.micro_batches(shape)
    batches = min(micro_batches, _MICRO_BATCHES) * config.loader.batch * shape.data_parallel
    once = replace(config, global_batch_size=batches, model=replace(config.model, checkpoint=Path("nothing-is-read")))
    streamed = config.memory.weights != "device" and not config.parallel.shard
    timed = None if clock is None else _clock(config, clock, machine, sizes)
    stage = Stage(machine, world_size, DTYPES[config.dtype] if streamed else None, components, timed)
    table = stage.operators(config.operator_choices, (DTYPES[config.dtype],))
    with stage.world(), _without_files(components):
        processes = stage.processes(shape, config.parallel.timeout)
        ops = processes.operators(table)
        updater, batches, build = _built(stage, once, sizes, ops, processes)
        with stage.play("step"):
            stage.forget()
            ready = updater.prepared(0, batches, build, pin=machine.kind != "cpu")
            updater.step(0, ready, partial(_follow, stage, updater.weights))
        simulation = None
        if world_size > 1:
            collectives = stage.log.collectives()
            simulation = simulate(config, shape, processes, updater.weights, updater.optimizer, collectives)
    given = {name: torch.empty(size, device="meta") for name, size in clip_tensors(sizes, config).items()}
    return stage.report(
        command="train",
        recipe=config.name,
        model=updater.model,
        shape=shape,
        clips_per_step=config.clips_per_step(shape),
        operators=table,
        given=given,
        predicted=_predicted(config, sizes, machine, shape, base_of(components.values())),
        simulation=simulation,
    )


def _clock(config: TrainConfig, name: str, machine: Machine, sizes: MovaConfig) -> Clock:
    """The clock of a device. Raises MovaError where it is of another kind than the machine, or the run copies to the
    host.
    """
    hardware = calibrated(name)
    if hardware.machine.kind != machine.kind:
        raise MovaError(f"--clock {name}: that is a device of kind {hardware.machine.kind}: say --device so, too")
    used = [name for name in _HOST_SETTINGS if getattr(config.memory, name) != "device"]
    if used:
        options = ", ".join(f"memory.{name} to device" for name in used)
        raise MovaError(f"--clock: copies to and from the host are not timed: set {options}")
    return Clock(hardware, training_job(config, sizes))


def predict_training(config: TrainConfig, machine: Machine, world_size: int = 1) -> Memory:
    """Without a rehearsal: what the cost model says of memory in a step."""
    base = base_of(_components(config, None).values())
    return _predicted(config, largest_clip(config, model_config(config)), machine, mesh_of(config, world_size), base)


def _predicted(config: TrainConfig, sizes: MovaConfig, machine: Machine, shape: MeshShape, base: str) -> Memory:
    return memory(planned(config, sizes, shape, base), machine)


def _components(config: TrainConfig, stored: str | None) -> dict[str, AbsentComponent]:
    """Components of the checkpoint, by the headers of its files or as `stored` says, where they go with the run."""
    start = config.model.checkpoint
    folder = start if start is not None and (start / INDEX).is_file() else None
    if stored is not None and (folder is not None or not config.lora.rank):
        why = "trains all weights" if not config.lora.rank else f"starts from {folder}, whose files say so themselves"
        raise MovaError(f"--stored {stored}: {config.name} {why}; leave it out")
    found = absent_components(folder, COMPONENTS if folder is None else listed_components(folder), stored)
    for name, part in found.items():
        if name not in config.model.init_from_scratch:
            check_stored(config, part)
    return found


def _built(
    stage: Stage, config: TrainConfig, sizes: MovaConfig, ops: OpTable, processes: Processes
) -> tuple[Updater, Iterator[dict[str, Any]], Callable[..., LatentBatch]]:
    """The Updater, an endless iterator of one batch, and the function that builds a LatentBatch from it."""
    device = stage.backend.device()
    with stage.play("build"):
        model, shards = build_model(config, sizes, ops, device, processes, fill=False)
        model.train()
        take_slots(model, stage.tracker)
        weights = Weights(model, DTYPES[config.dtype], config.optim.ema, shards)
        group = None if shards is None else shards.group
        optimizer = build_optimizer(weights.masters, config.optim, ops, DTYPES[config.dtype], group)
        _take_moments(weights, optimizer)
        stage.tracker.label(local_tensors(model), PARAMETERS, known=True)
        stage.tracker.label(weights.tensors(), PARAMETERS, known=True)
        stage.tracker.label(weights.ema or (), AVERAGE, known=True)
        states = (x for state in optimizer.state.values() for x in state.values() if isinstance(x, Tensor))
        stage.tracker.label(states, MOMENTS, known=True)
        with stage.host.within(INPUTS):
            clip = {name: torch.empty(shape) for name, shape in clip_tensors(sizes, config).items()}
            empty_text = torch.empty(clip["text"].shape[1:])
        build = BatchBuilder(empty_text, device, audio_only=config.task == "audio")
        batch = {**clip, "id": ("clip",) * config.loader.batch, "heard": torch.ones(config.loader.batch, 1)}
    updater = Updater(config, model, weights, optimizer, ops, processes)

    def batches() -> Iterator[dict[str, Any]]:
        while True:
            yield batch

    def built(given: dict, factors: Tensor | None = None) -> LatentBatch:
        with stage.tracker.within(INPUTS):
            return build(given, factors)

    return updater, batches(), built


def _follow(stage: Stage, weights: Weights, at: str) -> None:
    """Called by the step at each of its stages (`at`): labels the gradients when the update begins."""
    stage.waits.stage = at.partition(": ")[2]
    stage.tracker.in_update = at.endswith("update")
    if stage.tracker.in_update:
        gradients = weights.gradients().values()
        stage.tracker.label((x for group in gradients for x in group), GRADIENTS, known=True)


def _take_moments(weights: Weights, optimizer: torch.optim.Optimizer) -> None:
    """Create the optimizer's moments for all weights, by a step with zero gradients."""
    for tensor in weights.tensors():
        tensor.grad = torch.zeros_like(tensor)
    optimizer.step()
    weights.zero_grad()


def clip_tensors(sizes: MovaConfig, config: TrainConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, float32, that the loader gives for a micro-batch."""
    batch, clip = config.loader.batch, sizes.clip
    shapes = {
        "audio_latents": (batch, sizes.audio.in_dim, clip.audio_tokens),
        "text": (batch, sizes.text_tokens, sizes.video.text_dim),
    }
    if config.task == "joint":
        video = (batch, sizes.video.out_dim, *clip.latent_shape)
        shapes |= {"video_latents": video, "image_latents": video}
    return shapes


@contextmanager
def _without_files(components: Mapping[str, AbsentComponent]) -> Iterator[None]:
    """Within the block no weights are read from files, and no folder is compared with the settings."""

    def load(component: nn.Module, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        components[folder.name].load(component, device=device, dtype=dtype)

    with ExitStack() as patches:
        for name, stand_in in (
            ("load_weights", load),
            ("open_component", lambda folder: components[folder.name]),
            ("hold_weights", hold_absent),
            ("read_rows", lambda *_: None),
            ("check_output", lambda *_: None),
            ("initial_adapters", lambda *_: {}),
        ):
            patches.enter_context(patch.object(lora_model, name, stand_in))
        yield


def planned(config: TrainConfig, sizes: MovaConfig, shape: MeshShape, base: str = "activations") -> PlannedRun:
    """The run as the cost model's input. base: how files hold the weights of layers, see `Job`."""
    job = replace(training_job(config, sizes), clips=config.clips_per_step(shape), base=base)
    return PlannedRun(job, layout_of(shape, config.parallel.shard), config.memory)


def in_this_process(
    settings: dict[str, Any],
    machine: dict[str, Any],
    world_size: int,
    layers: int | None,
    stored: str | None = None,
    clock: str | None = None,
) -> dict[str, Any]:
    """`dry_run_training` with plain values as arguments and result, to be called in a child process."""
    config = TRAIN.fill(settings, "the rehearsal")
    return dry_run_training(config, assumed_machine(**machine), world_size, layers, stored, clock).to_dict()
