"""Checks of all ranks of a sampling run: which clips each rank makes, and from which noise.

The pipeline's own functions that divide the clips and draw the noise are called for every rank. Each clip must be made
exactly once and reach rank 0 in its order; ranks that make a clip together must draw the same noise; different clips
must have different noise.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mova_engine.config.mesh import DIMENSIONS, MeshShape
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import draw_noise
from mova_engine.inference.requests import Prompt, Request, make_requests
from mova_engine.inference.turns import part_of, turns_of
from mova_engine.rehearsal.all_ranks import Laps, sent_by_all, simulate_mesh
from mova_engine.rehearsal.result import Collective
from mova_engine.rehearsal.simulated import Simulation


def simulate(
    model: MovaConfig,
    shape: MeshShape,
    processes: Processes,
    *,
    clips: int,
    batch: int,
    seed: int,
    sharded: bool,
    collectives: tuple[Collective, ...],
) -> Simulation:
    """Check all ranks of a run whose rank 0 was rehearsed. clips: number of clips of all groups. batch: clips that a
    group makes at a time. seed: of the first clip. Raises MovaError for an inconsistency.
    """
    lap = Laps()
    coordinates, groups = simulate_mesh(shape, processes)
    lap("mesh")
    requests = [request for _, request in make_requests([Prompt("clip", None, None)], clips, seed)]
    made = batches_of_ranks(requests, shape, batch, sharded)
    data = simulate_clips(requests, made, shape, batch, sharded)
    lap("clips")
    noise = simulate_noise(made, model, shape)
    lap("noise")
    sizes: dict[str, int] = dict(zip(DIMENSIONS, shape.sizes, strict=True))
    return Simulation(sizes, coordinates, groups, data, noise, {}, sent_by_all(collectives, shape.world), lap.seconds)


def batches_of_ranks(
    requests: Sequence[Request], shape: MeshShape, batch: int, sharded: bool
) -> list[list[Sequence[Request]]]:
    """The batches that each rank makes: by rank, then by turn."""
    turns = turns_of(requests, batch, shape.data_parallel)
    return [[part_of(turn, shape.data_rank(rank), sharded) for turn in turns] for rank in range(shape.world)]


def simulate_clips(
    requests: Sequence[Request],
    made: Sequence[Sequence[Sequence[Request]]],
    shape: MeshShape,
    batch: int,
    sharded: bool,
) -> dict[str, Any]:
    """Compare the batches of all ranks. made: by rank and turn. Raises MovaError if a clip is made twice, never or out
    of order, or if ranks that work together have different clips.
    """
    turns, collected = turns_of(requests, batch, shape.data_parallel), []
    for number, turn in enumerate(turns):
        for group, members in enumerate(shape.clip_groups()):
            parts = [made[rank][number] for rank in members]
            other = next((rank for rank, part in zip(members, parts, strict=True) if part != parts[0]), None)
            if other is not None:
                raise MovaError(
                    f"clips: ranks {members[0]} and {other} do not make the same clips in turn {number + 1}"
                )
            if sharded and not parts[0]:
                raise MovaError(f"clips: rank {members[0]} has none in turn {number + 1}, and all gather weights in it")
            # The clips that a group without clips left repeats are dropped.
            collected += parts[0] if group < len(turn) else ()
    seeds, wanted = [each.seed for each in collected], [each.seed for each in requests]
    if seeds != wanted:
        at = next((i for i, pair in enumerate(zip(seeds, wanted, strict=False)) if pair[0] != pair[1]), len(seeds))
        raise MovaError(f"clips: rank 0 collects {len(seeds)} of {len(wanted)}, and clip {at} is not in its place")
    idle = (shape.data_parallel - len(turns[-1])) * shape.clip_ranks
    return {"clips": len(requests), "batch": batch, "turns": len(turns), "idle_ranks": idle}


def simulate_noise(made: Sequence[Sequence[Sequence[Request]]], model: MovaConfig, shape: MeshShape) -> dict[str, Any]:
    """Draw the noise of a tiny clip for every request of every rank. made: by rank and turn. Raises MovaError if ranks
    that make a clip together draw different noise, or if two clips have the same noise.
    """
    _, height, width = model.clip.video_stride
    tiny = replace(model.clip, height=2 * height, width=2 * width, frames=1)
    owner: dict[tuple[float, ...], int] = {}
    for members in shape.clip_groups():
        for part in zip(*(made[rank] for rank in members), strict=True):
            drawn = [_drawn(requests, model, tiny) for requests in part]
            for rank, own in zip(members, drawn, strict=True):
                if own != drawn[0]:
                    raise MovaError(f"noise: ranks {members[0]} and {rank} make a clip together from different noise")
            for request, values in zip(part[0], drawn[0], strict=True):
                first = owner.setdefault(values, request.seed)
                if first != request.seed:
                    raise MovaError(
                        f"noise: the clips of seeds {first} and {request.seed} are made from the same noise"
                    )
    return {"different": len(owner), "alike": shape.clip_ranks}


def _drawn(requests: Sequence[Request], model: MovaConfig, clip: ClipConfig) -> list[tuple[float, ...]]:
    """The noise of each clip as a tuple of its values."""
    if not requests:
        return []
    noise = draw_noise(model, [request.seed for request in requests], clip)
    return [(*video, *audio) for video, audio in zip(*(x.flatten(1).tolist() for x in noise), strict=True)]
