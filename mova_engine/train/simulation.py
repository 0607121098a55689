"""Computes for all ranks of a training run, in one process, the order of their clips and their random draws.

The trainer's loaders, rounds and draws run for every rank, on a data set of numbers. Over all ranks each clip must
occur once per epoch, of a mix per epoch of its set, also if the run resumes with another number of ranks. Ranks that
share a clip must draw the same noise, all others different noise.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mova_engine.config.buckets import bucket_name
from mova_engine.config.mesh import DIMENSIONS, MeshShape
from mova_engine.config.model import get_preset
from mova_engine.config.train import TrainConfig
from mova_engine.data.bucketed import BucketedClips
from mova_engine.data.clip_changes import marks, order_digest
from mova_engine.data.loader import Loader
from mova_engine.data.metadata import Entry
from mova_engine.data.mixture import BLOCK, MixedClips, MixedSet
from mova_engine.distributed.processes import Processes
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError
from mova_engine.ops import DTYPES
from mova_engine.rehearsal.all_ranks import Laps, sent_by_all, simulate_checkpoint, simulate_mesh
from mova_engine.rehearsal.result import Collective
from mova_engine.rehearsal.simulated import Simulation
from mova_engine.train.assembly import mesh_of
from mova_engine.train.clip_data import open_loader
from mova_engine.train.masters import Weights
from mova_engine.train.timestep_sampling import draw_noise, first_clip, rank_seed
from mova_engine.train.training_state import saved_pieces

# Steps per epoch. The epoch has a few clips more, so that some steps span two epochs.
_STEPS = 5
_EPOCHS = 2
_NOISE_STEPS = 2
# Shape of the part of a clip's noise that is compared.
_COMPARED = ((4,),)
# Micro-batches per step whose noise is compared.
_MICRO_BATCHES = 2


def simulate(
    config: TrainConfig,
    shape: MeshShape,
    processes: Processes,
    weights: Weights,
    optimizer: torch.optim.Optimizer,
    collectives: tuple[Collective, ...],
) -> Simulation:
    """Simulate all ranks of a run. processes, weights, optimizer, collectives: those of the dry run of rank 0.

    Raises MovaError for an inconsistency between ranks.
    """
    lap = Laps()
    coordinates, groups = simulate_mesh(shape, processes)
    lap("mesh")
    data = simulate_data(config, shape)
    lap("data")
    noise = simulate_noise(config, shape)
    lap("noise")
    shards = 1 if weights.shards is None else weights.shards.group.size
    pieces = saved_pieces(weights, optimizer, DTYPES[config.dtype], _shape_alone)
    checkpoint = simulate_checkpoint(pieces, shape.world, shards)
    lap("checkpoint")
    sizes: dict[str, int] = dict(zip(DIMENSIONS, shape.sizes, strict=True))
    sent = sent_by_all(collectives, shape.world)
    return Simulation(sizes, coordinates, groups, data, noise, checkpoint, sent, lap.seconds)


def _shape_alone(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


class _NumberedClips:
    """A data set whose clip i is the number first + i."""

    # False: ranks that share clips read batches in turn and broadcast them, as they do with clips in files.
    in_memory = False
    cache = None

    def __init__(self, count: int, first: int = 0) -> None:
        self.first = first
        self.entries = [Entry(Path(str(number)), "", str(number)) for number in range(count)]
        self.marks = marks(self.entries, None)
        self.content_digest = None

    def order_digest(self, shuffle: bool = True) -> str:
        return order_digest((entry.id for entry in self.entries), shuffle)

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        return {"clips": [self.first + index for index in indices], "id": [str(index) for index in indices]}


def _clips_of(config: TrainConfig, count: int) -> tuple[_NumberedClips | MixedClips, dict[str, range]]:
    """About `count` numbered clips as the run has them, and the numbers of each set of them, by its name.

    The sets of a mix are of different sizes, so that their epochs end at different times.
    """
    if not config.mix and not config.buckets.given:
        return _NumberedClips(count), {"": range(count)}
    named = [(each.name, each.weight) for each in config.mixed] or [("", 1.0)]
    whole, first = sum(weight for _, weight in named), 0
    sets, numbers = list[MixedSet](), dict[str, range]()
    # Their order does not depend on what sizes they are.
    clip = config.clip.over(get_preset(config.model.preset).clip)
    buckets = [bucket_name(shape) for shape in config.buckets.shapes(clip)] if config.buckets.given else [""]
    for place, (name, weight) in enumerate(named, 1):
        for bucket in buckets:
            own = max(1, round(count * weight / whole / place))
            part = "/".join(filter(None, (name, bucket)))
            numbers[part] = range(first, first + own)
            clips: Any = _NumberedClips(own, first)
            sets.append(MixedSet(part, weight / len(buckets), clips))
            first += own
    return (BucketedClips(sets) if config.buckets.given else MixedClips(sets)), numbers


class _RecordedRounds(Rounds):
    """Rounds without other ranks: records whose turn it is, and returns the batch only if it is this rank's own."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def broadcast(self, batch: dict[str, Any] | None, turn: int) -> dict[str, Any]:
        return {"clips": None if batch is None else batch["clips"], "turn": turn}


class _Group:
    """The ranks of one data-parallel group, each with its own loader."""

    def __init__(self, config: TrainConfig, shape: MeshShape, clips: Any, members: Sequence[int]) -> None:
        self.members, size = members, len(members)
        several = size > 1
        self.loaders: list[Loader] = [
            open_loader(
                config,
                clips,  # as much of a data set as a loader asks for
                shape,
                shape.data_rank(rank),
                _RecordedRounds(number, size) if several else None,
            )
            for number, rank in enumerate(members)
        ]

    def start(self) -> None:
        """Start to iterate from the loaders' current positions."""
        self._batches: list[Iterator[dict[str, Any]]] = [iter(loader) for loader in self.loaders]

    def next(self) -> tuple[int, ...]:
        """The clips of the group's next batch. Raises MovaError if its ranks do not agree on them."""
        given = [next(batches) for batches in self._batches]
        if len({each.get("turn") for each in given}) > 1:
            raise MovaError(f"data order: ranks {self.members[0]} to {self.members[-1]} take each other's batches")
        made = [tuple(each["clips"]) for each in given if each["clips"] is not None]
        if len(set(made)) != 1:
            raise MovaError(f"data order: ranks {self.members[0]} to {self.members[-1]} do not train on the same clips")
        return made[0]


def simulate_data(config: TrainConfig, shape: MeshShape) -> dict[str, Any]:
    """Run all ranks' loaders over two epochs, and resume in the middle with another number of ranks. Raises MovaError
    if a clip does not occur exactly once per epoch.
    """
    step = config.clips_per_step(shape)
    # Worker processes do not change the order of batches.
    config = replace(config, loader=replace(config.loader, workers=0))
    clips, sets = _clips_of(config, _STEPS * step + step // 3 + 1)
    steps = _STEPS * _EPOCHS // 3
    order: list[tuple[int, int]] = []
    groups = _opened(config, shape, clips, None)
    _take(groups, steps * config.micro_batches(shape), order)
    states = [loader.state_dict() for group in groups for loader in group.loaders]
    if any(state != states[0] for state in states):
        raise MovaError("data order: ranks would save different positions in the data")
    other = _other_mesh(config, shape)
    resumed = _opened(config, other, clips, states[0])
    left = (len(clips) if config.buckets.given else _STEPS * step + step // 3 + 1) * _EPOCHS - len(order)
    at_once = other.data_parallel * config.loader.batch
    _take(resumed, -(-left // at_once), order)
    for name, numbers in sets.items():
        own = [(clip, group) for clip, group in order if clip in numbers]
        for epoch in range(max(1, len(own) // len(numbers))):
            _check_epoch(own[epoch * len(numbers) : (epoch + 1) * len(numbers)], len(numbers), epoch)
        if not config.buckets.given:
            _check_share(config, name, len(own), len(order))
    if config.buckets.given:
        _check_steps(order, sets, step)
    mixed = {"sources": len(sets)} if config.mix else {}
    return {"clips": len(clips), "epochs": _EPOCHS, "steps": steps, "resumed_ranks": other.world} | mixed


def _opened(config: TrainConfig, shape: MeshShape, clips: Any, state: dict[str, Any] | None) -> list[_Group]:
    groups = [_Group(config, shape, clips, members) for members in shape.clip_groups()]
    for group in groups:
        if state is not None:
            for loader in group.loaders:
                loader.load_state_dict(state)
        group.start()
    return groups


def _take(groups: Sequence[_Group], micro_batches: int, order: list[tuple[int, int]]) -> None:
    """Add to `order` what is trained on: (clip, data-parallel group)."""
    for _ in range(micro_batches):
        for number, group in enumerate(groups):
            order += [(clip, number) for clip in group.next()]


def _check_epoch(order: Sequence[tuple[int, int]], count: int, epoch: int) -> None:
    seen: dict[int, int] = {}
    for clip, group in order:
        if clip in seen:
            both = f"groups {seen[clip]} and {group}" if seen[clip] != group else f"group {group}"
            raise MovaError(f"data order: in epoch {epoch + 1} clip {clip} is given twice, to data-parallel {both}")
        seen[clip] = group
    if len(seen) < count:
        lacking = next(clip for clip in range(count) if clip not in seen)
        raise MovaError(f"data order: in epoch {epoch + 1} {count - len(seen)} clips are left out, such as {lacking}")


def _check_steps(order: Sequence[tuple[int, int]], sets: Mapping[str, range], step: int) -> None:
    """Raise MovaError if a step has clips of several buckets."""
    for first in range(0, len(order), step):
        clips = [clip for clip, _ in order[first : first + step]]
        found = [name for name, numbers in sets.items() if any(clip in numbers for clip in clips)]
        if len(found) > 1:
            raise MovaError(f"data order: step {first // step + 1} has clips of buckets {' and '.join(found)}")


def _check_share(config: TrainConfig, name: str, given: int, total: int) -> None:
    """Raise MovaError if a set of a mix gives more or fewer clips than its weight asks for."""
    weights = {each.name: each.weight for each in config.mixed}
    if weights and abs(given - (wanted := total * weights[name] / sum(weights.values()))) > BLOCK:
        raise MovaError(f"data order: {name} gives {given} of {total} clips, by its weight {wanted:.0f}")


def _other_mesh(config: TrainConfig, shape: MeshShape) -> MeshShape:
    """A mesh of another number of ranks with which the run could resume; `shape` if no tried number fits."""
    for world in (shape.world // 2, shape.world * 2, shape.world // 4):
        try:
            other = mesh_of(config, world)
        except MovaError:
            continue
        # A run with buckets resumes with as many clips a step.
        if not config.buckets.given or config.clips_per_step(other) == config.clips_per_step(shape):
            return other
    return shape


def simulate_noise(config: TrainConfig, shape: MeshShape) -> dict[str, Any]:
    """Draw a part of every clip's noise in every rank, for two steps. Raises MovaError if ranks that share a clip draw
    different noise, or if two clips get the same.
    """
    owner: dict[tuple[float, ...], tuple[int, int, int, int]] = {}
    batch, micro_batches = config.loader.batch, min(config.micro_batches(shape), _MICRO_BATCHES)
    for step in range(_NOISE_STEPS):
        for micro in range(micro_batches):
            for members in shape.clip_groups():
                drawn = [_drawn(config, shape, step, micro, rank) for rank in members]
                for rank, own in zip(members, drawn, strict=True):
                    if own != drawn[0]:
                        raise MovaError(f"noise: ranks {members[0]} and {rank} share a clip and draw different noise")
                for place, values in enumerate(drawn[0]):
                    here = (step, micro, members[0], place)
                    first = owner.setdefault(values, here)
                    if first != here:
                        raise MovaError(
                            f"noise: ranks {first[2]} and {members[0]} draw the same noise for different clips, in "
                            f"steps {first[0] + 1} and {step + 1}"
                        )
    seeds = [[rank_seed(config.seed, shape.data_rank(rank)) for rank in members] for members in shape.clip_groups()]
    if any(len(set(own)) > 1 for own in seeds) or len({own[0] for own in seeds}) < len(seeds):
        raise MovaError("noise: the libraries' generators are not seeded alike in the ranks that share a clip alone")
    return {"steps": _NOISE_STEPS, "different": len(owner), "alike": shape.clip_ranks, "clips_of_a_batch": batch}


def _drawn(config: TrainConfig, shape: MeshShape, step: int, micro: int, rank: int) -> list[tuple[float, ...]]:
    """The compared part of a rank's noise, for each clip of its micro-batch."""
    batch = config.loader.batch
    first = first_clip(micro, shape.data_parallel, shape.data_rank(rank), batch)
    (noise,) = draw_noise(_COMPARED, config.seed, step, first, batch)
    return [tuple(values) for values in noise.tolist()]
