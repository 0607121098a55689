"""Training runs inside the processes of a World, and what becomes of them."""

import errno
import hashlib
import io
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch
from distributed.device import backend
from rich.console import Console
from spoilt_gradients import SpoiltGradient

from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import get_preset
from mova_engine.config.recipes import load_config
from mova_engine.data import shard_files
from mova_engine.data.dataset import open_dataset
from mova_engine.data.latent_cache import LatentCache, Problem
from mova_engine.data.loader import build_loader
from mova_engine.data.metadata import Entry
from mova_engine.distributed import dcp, reserve, watchdog
from mova_engine.distributed.collectives import Group
from mova_engine.distributed.processes import Launch, Processes, read_launch, start_processes
from mova_engine.errors import MovaError
from mova_engine.files import byte_ranges
from mova_engine.ops import DTYPES
from mova_engine.train import assembly, clip_data, resume, trainer
from mova_engine.train import step as step_module
from mova_engine.train.assembly import assemble, join_processes
from mova_engine.train.micro_batch import MicroBatch
from mova_engine.train.model_setup import export_model, outline
from mova_engine.train.prefetch import Prefetch
from mova_engine.train.trainer import Trainer
from mova_engine.train.training_state import save_checkpoint, sharded_save


def configured(clips: str, out: str, steps: int, batch: int, every: int = 100, resume: str = "auto", **settings):
    """A small run's configuration."""
    return load_config(
        "nano",
        data=Path(clips),
        out=Path(out),
        steps=steps,
        device=backend().name,
        resume=resume,
        loader={"batch": batch, "num_fit_clips": 4, **settings.pop("loader", {})},
        optim={"warmup": 2, "ema": 0.9, **settings.pop("optim", {})},
        checkpoint={"every": every},
        log={"every": 1, "tensorboard": False},
        validation={"every": 0},
        **settings,
    )


def without_a_picture() -> AbstractContextManager:
    """Runs do not draw their losses, which takes as long as a few steps do."""
    return patch.object(trainer, "loss_curve", lambda metrics: b"a picture")


def process_id() -> int:
    """Of this process, for those who send it signals."""
    return os.getpid()


def run_shared(fault: str | None = None, **settings) -> tuple[int | str, str]:
    """Train; returns the exit status, or what was raised, and what the first process said. fault: of rank 1."""
    said = io.StringIO()
    guilty = fault is not None and read_launch().rank == 1
    with without_a_picture(), _FAULTS[fault]() if guilty else nullcontext():
        config = configured(**settings)
        if fault == "shard gone" and guilty:
            config = replace(config, loader=replace(config.loader, cache=config.folder.with_name("cache of rank 1")))
        if fault == "another setting" and guilty:
            config = replace(config, optim=replace(config.optim, lr=0.5))
        try:
            runner = Trainer(config, Console(file=said, highlight=False, markup=False, soft_wrap=True))
            return runner.run(), said.getvalue()
        except (MovaError, SystemExit) as error:
            return f"{type(error).__name__}: {error}", said.getvalue()


def exchanges_between_steps(**settings) -> tuple[list[int], list[int]]:
    """How many sums and maxima over processes are started within each step, and between each step and the next."""
    marks, started = list[int](), [0]
    step = step_module.Updater.step

    def counted(reduce):
        def call(group: Group, *args, **options):
            started[0] += group.size > 1
            return reduce(group, *args, **options)

        return call

    def noted(*args, **options):
        marks.append(started[0])
        found = step(*args, **options)
        marks.append(started[0])
        return found

    both = {name: counted(getattr(Group, name)) for name in ("all_reduce", "start_all_reduce")}
    with patch.multiple(Group, **both), patch.object(step_module.Updater, "step", noted):
        status, said = run_shared(**settings)
    assert status == 0, said
    between = [after - before for before, after in pairwise(marks)]
    return between[::2], between[1::2]


def _full_disk():
    def write(descriptor: int, tensor: torch.Tensor, offset: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return patch.object(dcp, "_write_at", write)


def _not_finite():
    right = step_module.micro_losses

    def losses(*arguments):
        found = right(*arguments)
        return type(found)(found.total * torch.nan, found.video, found.audio)

    return patch.object(step_module, "micro_losses", losses)


def _spoilt_layer():
    """A layer's result is infinite in one process."""
    right = assembly.build_model

    def build_model(*arguments, **settings):
        model, shards = right(*arguments, **settings)
        model.video_dit.blocks[0].ffn.register_forward_hook(lambda module, given, made: made / 0)
        return model, shards

    return patch.object(assembly, "build_model", build_model)


def _spoilt_gradient():
    """The gradient of a layer's result is infinite in one process."""
    right = assembly.build_model

    def build_model(*arguments, **settings):
        model, shards = right(*arguments, **settings)
        model.audio_dit.blocks[0].ffn.register_forward_hook(lambda module, given, made: SpoiltGradient.apply(made))
        return model, shards

    return patch.object(assembly, "build_model", build_model)


def _slow():
    """A layer takes its time in one process."""
    right = assembly.build_model

    def build_model(*arguments, **settings):
        model, shards = right(*arguments, **settings)
        model.audio_dit.blocks[0].ffn.register_forward_hook(lambda module, given, made: time.sleep(1.0))
        return model, shards

    return patch.object(assembly, "build_model", build_model)


def _unreadable_on_opening():
    """While the cache is filled."""
    right = LatentCache.fill

    def fill(cache: LatentCache, entries: list, progress: Callable) -> list:
        return [*right(cache, entries, progress), Problem(sorted(entries, key=lambda e: e.id)[2], "Input/output error")]

    return patch.object(LatentCache, "fill", fill)


def _unreadable_on_preloading():
    """When the clips are taken into memory."""
    right = LatentCache.get

    def get(cache: LatentCache, entry: Entry) -> dict:
        if entry.id.endswith("2.mp4"):
            raise MovaError(f"{entry.path}: Stale file handle")
        return right(cache, entry)

    return patch.object(LatentCache, "get", get)


def _unreadable_on_fitting():
    """When the codecs are fitted to the clips."""
    right, failed = clip_data.read_clip, []

    def read_clip(*arguments, **settings):
        if not failed:
            failed.append(1)
            raise MovaError("Input/output error")
        return right(*arguments, **settings)

    return patch.object(clip_data, "read_clip", read_clip)


def _shard_gone():
    """The server has no second shard for this process, which finds nothing in another's cache."""
    return patch.multiple(
        shard_files,
        read_range=lambda address, *place: byte_ranges.read_range(_elsewhere(address), *place),
        read_facts=lambda address: byte_ranges.read_facts(_elsewhere(address)),
    )


def _elsewhere(address: str) -> str:
    return address.replace("/b.tar", "/not-there.tar")


_FAULTS = {
    "shard gone": _shard_gone,
    "full disk": _full_disk,
    "not finite": _not_finite,
    "slow": _slow,
    "spoilt layer": _spoilt_layer,
    "spoilt gradient": _spoilt_gradient,
    "unreadable on opening": _unreadable_on_opening,
    "unreadable on preloading": _unreadable_on_preloading,
    "unreadable on fitting": _unreadable_on_fitting,
    "another setting": nullcontext,
    "another checkpoint": lambda: patch.object(resume, "_wanted", lambda config: None),
}


def clips_taken(**settings) -> list[list[str]]:
    """Train; the clips that this process was given, by step."""
    return [[name for name, _ in batch] for batch in contents_taken(**settings)]


def contents_taken(**settings) -> list[list[tuple[str, str]]]:
    """Train; the clips that this process trained on, by micro-batch, each with a digest of its sound's latents."""
    taken, right = [], Prefetch.__next__

    def take(batches: Prefetch) -> MicroBatch:
        found = right(batches)
        sounds = [hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16] for x in found.clips.audio]
        taken.append(list(zip(found.clips.ids, sounds, strict=True)))
        return found

    with patch.object(Prefetch, "__next__", take):
        status, said = run_shared(**settings)
    assert status == 0, (status, said)
    return taken


def resaved(source: str, **settings) -> None:
    """Load a checkpoint as this world's mesh has it, and save it again."""
    config = configured(steps=9, **settings)
    processes = join_processes(config, read_launch())
    parts = assemble(config, Path(source), Console(quiet=True), processes)
    step, progress = parts.resumed["step"], {**parts.resumed["progress"], "loader": parts.loader.state_dict()}
    if parts.state.weights.shards is None:

        def export_whole(folder: Path) -> None:
            with parts.state.weights.averaged():
                export_model(parts.model, parts.codecs, config, folder, step)

        save_checkpoint(config.folder, step, parts.state, progress, {}, export_whole)
    else:
        dtype = DTYPES[config.dtype]
        bare = outline(parts.model, dtype)

        def export(folder: Path) -> None:
            export_model(bare, parts.codecs, config, folder, step, write=reserve.reserve_tensors)

        sharded_save(config.folder, step, parts.state, progress, {}, export, dtype, parts.saver.group)()
    processes.close()


def encoded_in_rounds(clips: str, cache: str, batches: int) -> tuple[list[str], dict[str, float], int]:
    """Batches of a loader that encodes online, in a group that shares them: the clips' names in order, sums that tell
    their tensors, and how many clips this rank has encoded.
    """
    place, sizes = _group(), get_preset("nano")
    codec, encoded = build_video_codec("dct"), []
    counted = codec.encode
    codec.encode = lambda video: (encoded.append(1), counted(video))[1]
    codecs = codec, build_audio_codec("mdct"), build_text_encoder("bytes", tokens=16, dim=sizes.video.text_dim)
    folder = Path(cache) / str(place.launch.rank)
    data = open_dataset(Path(clips), LatentCache(folder, sizes.clip, *codecs), ahead=False)
    loader = iter(build_loader(data, 1, seed=2, rounds=place.rounds))
    taken = [next(loader) for _ in range(batches)]
    names = [name for batch in taken for name in batch["id"]]
    sums = {f"{i}:{k}": float(x.double().sum()) for i, b in enumerate(taken) for k, x in b.items() if k.endswith("s")}
    # A clip's video and its first frame.
    return names, sums, len(encoded) // 2


def _group() -> Processes:
    launch = read_launch()
    return start_processes(backend(), launch, choose_mesh(launch.world, 4, context_parallel=launch.world))


def watched(case: str) -> tuple[str | None, int | None]:
    """Two processes under a watch of two seconds, of which rank 1 fails as `case` says; returns what this one was told
    and the status with which its watch would have ended it.
    """
    with patch.multiple(watchdog, HEARTBEAT_INTERVAL_S=0.1, HEARTBEAT_TIMEOUT_S=1.0, ABORT_GRACE_S=0.2):
        return _watched(case, _group())


def _watched(case: str, place: Processes) -> tuple[str | None, int | None]:
    ended: list[int] = []
    mine = watchdog.Watch(place.launch, 2.0, ended.append)
    told = None
    mine.at("step 1: reading clips")
    try:
        with mine.guard():
            _behave(case, place.launch, mine)
    except (MovaError, SystemExit) as error:
        told = str(error)
    # The silent one, whose watch has ended, says nothing until the other has noticed.
    mine._decided.wait(5)
    time.sleep(0.5)
    if mine._verdict is not None and told is None:
        told = mine._verdict.text
    mine.close()
    place.all_reduce_max(0)
    return told, ended[0] if ended else None


def both_fail() -> str:
    """Both processes meet one error. The store is the first one's, which leaves long before the other's watch looks."""
    place, said = _group(), ""
    with patch.object(watchdog, "HEARTBEAT_INTERVAL_S", 0.1 if place.is_first else 1.0):
        mine = watchdog.Watch(place.launch, 20.0)
        place.all_reduce_max(0)
        try:
            with mine.guard():
                raise MovaError("the disk is full")
        except (MovaError, SystemExit) as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            mine.close()
            place.close()
    return said


def _behave(case: str, launch: Launch, mine: watchdog.Watch) -> None:
    if launch.rank == 1 and case in ("silent", "lost", "terminated"):
        # After a sign from here.
        time.sleep(0.5)
        mine._closing.set()
    elif case == "lost late":
        # In a stage that both have been in for long.
        time.sleep(1.5 * watchdog.HEARTBEAT_TIMEOUT_S)
        if launch.rank == 1:
            mine._closing.set()
        else:
            raise RuntimeError("Connection closed by peer")
    elif launch.rank == 1 and case == "failed":
        raise MovaError("the disk is full")
    elif launch.rank == 0:
        mine.at("step 1: forward and backward")
        if case == "terminated":
            # What a launcher sends to the others when it has seen one die, before they have.
            time.sleep(1.0)
            signal.signal(signal.SIGTERM, mine.stop)
            signal.raise_signal(signal.SIGTERM)
        if case == "lost":
            raise RuntimeError("Connection closed by peer")
