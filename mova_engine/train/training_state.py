"""Training checkpoints: a model folder that the sampler can load, and everything that resuming exactly needs.

    RUN/checkpoints/step-001000/
        model_index.json, video_dit/, ...    MOVA's layout; the averaged weights if there is an average
        training/state.json                  step, configuration, position in the data, counters, Python's RNGs
        training/{master,ema,optimizer,rng}.safetensors
        training/checksums.json              of all other files

A checkpoint is written to a temporary folder, flushed to disk and renamed: a folder named step-* is always complete.
Nothing is pickled. Processes with sharded weights write the same files together (`distributed.dcp`), so that a run can
resume with any number of processes.
"""

import json
import logging
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from mova_engine import __version__
from mova_engine.backend import Backend
from mova_engine.checkpoints.integrity import Ranges, is_own, write_checksums
from mova_engine.checkpoints.locate import ADAPTERS, STATE, TRAINING
from mova_engine.checkpoints.locate import CHECKPOINTS as FOLDER
from mova_engine.config.train import CheckpointSettings
from mova_engine.distributed.fsdp import LocalShard
from mova_engine.distributed.reserve import reserve_tensors
from mova_engine.errors import MovaError
from mova_engine.files.atomic import set_aside
from mova_engine.files.folders import remove_folder, remove_unfinished, replaced, replaced_folder
from mova_engine.files.tensors import read_json, read_tensors, tensors_of_file, write_json, write_tensors
from mova_engine.ops.moment_blocks import SCALE
from mova_engine.train.masters import Weights
from mova_engine.train.optimizer import load_optimizer_tensors, optimizer_tensors

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class TrainingState:
    """The weights and the optimizer of a run, which a checkpoint saves and restores in place."""

    weights: Weights
    optimizer: torch.optim.Optimizer
    backend: Backend


def save_checkpoint(
    run: Path,
    step: int,
    state: TrainingState,
    progress: Mapping[str, Any],
    config: Mapping[str, Any],
    export: Callable[[Path], None],
) -> Path:
    """Write RUN/checkpoints/step-NNNNNN after `step` steps; return the folder.

    progress: state other than weights and optimizer, as plain values for JSON. config: the run's, as plain values.
    export: writes the model folder into the empty folder that it is given.
    Raises MovaError if it cannot be written; existing files stay, and nothing partial is left.
    """
    folder = run / FOLDER / f"step-{step:06d}"
    with _opened(folder, {}) as fresh:
        export(fresh)
        training = fresh / TRAINING
        training.mkdir()
        weights = state.weights
        names = [weight.name for weight in weights.masters]
        write_tensors(training / "master.safetensors", dict(zip(names, weights.tensors(), strict=True)))
        if weights.ema is not None:
            write_tensors(training / "ema.safetensors", dict(zip(names, weights.ema, strict=True)))
        write_tensors(training / "optimizer.safetensors", optimizer_tensors(state.optimizer, weights.masters))
        write_tensors(training / "rng.safetensors", _generators(state))
        write_json(training / STATE, _described(step, state, progress, config))
    return folder


def sharded_save(
    run: Path,
    step: int,
    state: TrainingState,
    progress: Mapping[str, Any],
    config: Mapping[str, Any],
    export: Callable[[Path], None],
    dtype: torch.dtype,
    group: dist.ProcessGroup | None,
) -> Callable[[], Path]:
    """`save_checkpoint` for sharded weights, by all processes. Copies the state, and returns the function that writes
    it, which may run in another thread while training continues.

    export: writes the model folder without its weights' data (`reserve_tensors`). dtype: of that folder's weights.
    group: a CPU process group of all processes, used for this purpose only.
    """
    if group is None:
        raise ValueError("sharded weights are saved by several processes, which need a group")
    pieces = saved_pieces(state.weights, state.optimizer, dtype, lambda x: x.detach().to("cpu", copy=True))
    generators, described = _generators(state), _described(step, state, progress, config)
    folder = run / FOLDER / f"step-{step:06d}"

    def prepare(fresh: Path) -> None:
        export(fresh)
        (fresh / TRAINING).mkdir()
        files: dict[str, dict[str, torch.Tensor]] = {}
        for key, piece in pieces.items():
            file, name = key.split(":", 1)
            files.setdefault(file, {})[name] = torch.empty(piece.shape, dtype=piece.tensor.dtype, device="meta")
        for file in (file for file in files if file.startswith(TRAINING)):
            reserve_tensors(fresh / f"{file}.safetensors", files[file])
        write_tensors(fresh / TRAINING / "rng.safetensors", generators)
        write_json(fresh / TRAINING / STATE, described)

    # Imported where it is used: see `distributed.reserve`.
    from mova_engine.distributed.dcp import save_pieces

    def save() -> Path:
        save_pieces(folder, pieces, partial(_opened, folder), prepare, group)
        return folder

    return save


@contextmanager
def _opened(folder: Path, written: Ranges) -> Iterator[Path]:
    """Yield the temporary folder of a checkpoint; at the end write its checksums and rename it to `folder`.

    written: at the end, the byte ranges of its files whose checksums are known already.
    """
    _make_room(folder)
    with replaced_folder(folder, is_own) as fresh:
        yield fresh
        write_checksums(fresh, written)


def _make_room(folder: Path) -> None:
    """If `folder` exists and is not an unchanged checkpoint of a run, rename it: a run must be able to save."""
    if not os.path.lexists(folder) or is_own(folder):
        return
    log.warning("%s was not as a run writes it, and is now %s", folder, set_aside(folder).name)


def saved_pieces(
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    copied: Callable[[torch.Tensor], torch.Tensor],
) -> dict[str, LocalShard]:
    """This process's rows of all tensors of a checkpoint, `copied`, by the keys of `save_pieces`."""
    pieces: dict[str, LocalShard] = {}

    averages = weights.ema or [None] * len(weights.masters)
    for weight, average in zip(weights.masters, averages, strict=True):
        piece = replace(weight.piece, tensor=copied(weight.tensor))
        pieces[f"{TRAINING}/master:{weight.name}"] = piece
        if average is not None:
            piece = replace(piece, tensor=copied(average))
            pieces[f"{TRAINING}/ema:{weight.name}"] = piece
        part, name = weight.name.split(".", 1)
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            part, name = Path(ADAPTERS).stem, weight.name
        pieces[f"{part}:{name}"] = replace(piece, tensor=piece.tensor.to(dtype))
    by_name = {weight.name: weight.piece for weight in weights.masters}
    for key, value in optimizer_tensors(optimizer, weights.masters).items():
        piece = by_name[key.rpartition(":")[0]]
        shape = (piece.shape[0], *value.shape[1:]) if value.ndim else ()
        own = LocalShard(copied(value), shape, piece.first if value.ndim else 0)
        pieces[f"{TRAINING}/optimizer:{key}"] = own
    return pieces


def _generators(state: TrainingState) -> dict[str, torch.Tensor]:
    return {"torch": torch.get_rng_state(), "device": state.backend.rng_state()}


def _described(
    step: int, state: TrainingState, progress: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "mova_engine": __version__,
        "torch": torch.__version__,
        "device": state.backend.describe(),
        "step": step,
        "config": config,
        "progress": progress,
        "python_rng": random.getstate(),
        "numpy_rng": _numpy_state(),
    }


def read_state(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state.json. Raises MovaError if the folder is no training checkpoint of this version."""
    if not (folder / TRAINING / STATE).is_file():
        raise MovaError(f"{folder} is not a checkpoint of a training run: it has no {TRAINING}/{STATE}")
    described = read_json(folder / TRAINING / STATE)
    if described.get("format") != FORMAT:
        raise MovaError(f"{folder} has checkpoint format {described.get('format')}; this version reads {FORMAT}")
    return described


def load_checkpoint(folder: Path, state: TrainingState) -> dict[str, Any]:
    """Restore weights, average, optimizer and generators in place; return the checkpoint's state.json.

    Raises MovaError for a damaged checkpoint and for one of another model.
    """
    described, training = read_state(folder), folder / TRAINING
    weights = state.weights
    device = weights.masters[0].tensor.device
    masters = _in_order(training / "master.safetensors", weights, device)
    ema = training / "ema.safetensors"
    # A run that starts averaging now takes the weights as the first average.
    weights.load(masters, _in_order(ema, weights, device) if weights.ema is not None and ema.is_file() else None)
    moments = _moments(training / "optimizer.safetensors", weights)
    load_optimizer_tensors(state.optimizer, weights.masters, moments)
    rng, _ = read_tensors(training / "rng.safetensors")
    torch.set_rng_state(rng["torch"])
    if len(rng["device"]) == len(state.backend.rng_state()):
        # Generators of different device types have states of different length; the engine itself draws from neither.
        state.backend.set_rng_state(rng["device"])
    version, internal, gauss = described["python_rng"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = described["numpy_rng"]
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    return described


def check_resumable(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int, optimizer: str, moments: str
) -> None:
    """Raise MovaError if a run with weights of these shapes cannot resume from a checkpoint. Reads headers only."""
    described = read_state(folder)
    path = folder / TRAINING / "master.safetensors"
    found = {name: list(tensor.shape) for name, tensor in tensors_of_file(path).items()}
    _check_same(path, found, {name: list(shape) for name, shape in shapes.items()})
    began = described["config"].get("optim", {}).get("name", "adamw")
    if began != optimizer:
        raise MovaError(f"{folder} holds the state of {began}: give --optim.name {began}, or --out for a new run")
    states = tensors_of_file(folder / TRAINING / "optimizer.safetensors")
    held = "8bit" if any(name.endswith(SCALE) for name in states) else "float32"
    if states and held != moments:
        raise MovaError(
            f"{folder} holds AdamW's moments in {held}: give --optim.moments {held}, or --out for a new run"
        )
    saved = described["config"].get("seed", seed)
    if saved != seed:
        raise MovaError(
            f"{folder} was trained with seed {saved}, and its order of clips cannot continue with seed {seed}: give "
            f"--seed {saved}, or another --out for a new run"
        )


def checkpoints_of(run: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints of a run as (step, folder), oldest first."""
    found = []
    for path in (run / FOLDER).glob("step-*"):
        step = checkpoint_step(path)
        if step is not None and (path / TRAINING / STATE).is_file():
            found.append((step, path))
    return sorted(found)


def checkpoint_step(path: Path) -> int | None:
    """The step in a checkpoint's folder name; None for another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def clean_up(run: Path) -> None:
    """Remove folders that a killed run has left half-written or half-removed. Only for the run that holds the lock.

    A checkpoint that was being replaced when the run was killed is restored. Raises OSError.
    """
    for path in sorted((run / FOLDER).glob(".step-*.new")):
        remove_unfinished(path)
    for path in sorted((run / FOLDER).glob(".step-*.old")):
        remove_unfinished(path)
        home = path.with_name(path.name[1 : -len(".old")])
        if path.is_dir() and not os.path.lexists(home):
            path.rename(home)
        elif path.is_dir() and is_own(path):
            remove_folder(path)


def retain(run: Path, settings: CheckpointSettings) -> list[Path]:
    """Remove all checkpoints but the newest `keep_last` and those of every `keep_every` steps; return the removed.

    Checkpoints that were saved while steps were not finite do not count among the newest, so that the last good ones
    stay. A folder that holds files which the run did not write stays. Raises OSError.
    """
    every = [(step, path, _amid_failures(path)) for step, path in checkpoints_of(run)]
    good = [step for step, _, bad in every if not bad]
    newest = set(good[-settings.keep_last :]) | {step for step, _, bad in every[-settings.keep_last :] if bad}
    removed = []
    for step, path, _ in every:
        rest = settings.keep_every and step % settings.keep_every == 0
        if step in newest or rest or not is_own(path):
            continue
        # Renamed first: if the process is killed here, no partial folder may look like a checkpoint.
        doomed = replaced(path)
        path.rename(doomed)
        remove_folder(doomed)
        removed.append(path)
    return removed


def _amid_failures(folder: Path) -> bool:
    """Whether the step before a checkpoint was skipped because its loss or gradient was not finite."""
    try:
        return read_json(folder / TRAINING / STATE)["progress"]["skipped_in_a_row"] > 0
    except (MovaError, KeyError, TypeError):
        return False


def _numpy_state() -> list[Any]:
    state = np.random.get_state()
    assert isinstance(state, tuple), "the default form"
    name, keys, *rest = state
    return [name, keys.tolist(), *rest]


def _in_order(path: Path, weights: Weights, device: torch.device) -> list[torch.Tensor]:
    pieces = {weight.name: weight.piece for weight in weights.masters}
    expected = {name: list(piece.shape) for name, piece in pieces.items()}
    found: dict[str, list[int]] = {}

    def own(name: str, shape: tuple[int, ...]) -> slice | None:
        found[name] = list(shape)
        return pieces[name].rows if found[name] == expected.get(name) and shape else None

    tensors, _ = read_tensors(path, device, own)
    _check_same(path, found, expected)
    return [tensors[name] for name in expected]


def _check_same(path: Path, found: Mapping[str, list[int]], expected: Mapping[str, list[int]]) -> None:
    if found == expected:
        return
    odd = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    raise MovaError(
        f"{path} belongs to another model: {odd[0]} is {found.get(odd[0], 'absent')} there, "
        f"{expected.get(odd[0], 'absent')} in this run ({len(odd)} differ)"
    )


def _moments(path: Path, weights: Weights) -> dict[str, torch.Tensor]:
    """The optimizer's state: this process's rows of tensors with as many as their weight, other tensors in full."""
    pieces = {weight.name: weight.piece for weight in weights.masters}

    def own(key: str, shape: tuple[int, ...]) -> slice | None:
        piece = pieces.get(key.rpartition(":")[0])
        return piece.rows if shape and piece is not None and shape[0] == piece.shape[0] else None

    return read_tensors(path, rows=own)[0]


# Settings that do not affect the training.
_WITHOUT_EFFECT = re.compile(
    r"out|resume|data|device|debug|loader\.(workers|cache|synthetic_clips|synthetic_midway|preload|changed)|checkpoint\..*|validation\..*|log\..*"
)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the settings that differ, as "optim.lr: 0.001 -> 0.002". Settings that do not affect results are left
    out.
    """
    found = []
    for name in sorted(saved.keys() | now.keys()):
        old, new = saved.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new and not _WITHOUT_EFFECT.fullmatch(f"{prefix}{name}"):
            found.append(f"{prefix}{name}: {json.dumps(old)} -> {json.dumps(new)}")
    return found
