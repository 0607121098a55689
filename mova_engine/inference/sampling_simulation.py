"""A sampling run of many ranks, worked out for all of them: which clips each makes, and from which noise.

The pipeline's own division of clips and its own draws are run for every rank. Each clip must be made once, and come to
the first rank in its turn; ranks that make a clip together must draw the same noise, all clips different noise.
"""

import time
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
from mova_engine.rehearsal.all_ranks import sent_by_all, simulate_mesh
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
    """All ranks of a run of which the first was rehearsed. clips: of all groups; batch: of one at a time; seed: of the
    first clip.
    """
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(part: str) -> None:
        seconds[part] = round(time.perf_counter() - started - sum(seconds.values()), 2)

    coordinates, groups = simulate_mesh(shape, processes)
    lap("mesh")
    requests = [request for _, request in make_requests([Prompt("clip", None, None)], clips, seed)]
    made = batches_of_ranks(requests, shape, batch, sharded)
    data = simulate_clips(requests, made, shape, batch, sharded)
    lap("clips")
    noise = simulate_noise(made, model, shape)
    lap("noise")
    sizes: dict[str, int] = dict(zip(DIMENSIONS, shape.sizes, strict=True))
    return Simulation(sizes, coordinates, groups, data, noise, {}, sent_by_all(collectives, shape.world), seconds)


def batches_of_ranks(
    requests: Sequence[Request], shape: MeshShape, batch: int, sharded: bool
) -> list[list[Sequence[Request]]]:
    """By rank, the batch of each turn."""
    turns = turns_of(requests, batch, shape.data_parallel)
    return [[part_of(turn, shape.data_rank(rank), sharded) for turn in turns] for rank in range(shape.world)]


def simulate_clips(
    requests: Sequence[Request],
    made: Sequence[Sequence[Sequence[Request]]],
    shape: MeshShape,
    batch: int,
    sharded: bool,
) -> dict[str, Any]:
    """Hold all ranks' batches, by rank and turn, against each other. MovaError where a clip is made twice or by nobody,
    comes out of turn, or where ranks that work together have different ones.
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
            # What a group without clips left makes is dropped.
            collected += parts[0] if group < len(turn) else ()
    seeds, wanted = [each.seed for each in collected], [each.seed for each in requests]
    if seeds != wanted:
        at = next((i for i, pair in enumerate(zip(seeds, wanted, strict=False)) if pair[0] != pair[1]), len(seeds))
        raise MovaError(
            f"clips: the first rank collects {len(seeds)} of {len(wanted)}, and clip {at} is not in its place"
        )
    idle = (shape.data_parallel - len(turns[-1])) * shape.clip_ranks
    return {"clips": len(requests), "batch": batch, "turns": len(turns), "idle_ranks": idle}


def simulate_noise(made: Sequence[Sequence[Sequence[Request]]], model: MovaConfig, shape: MeshShape) -> dict[str, Any]:
    """Draw the noise of a tiny clip for every rank's requests, by rank and turn. MovaError where ranks that make a clip
    together draw different noise, or two clips get the same.
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
    """The numbers of each clip's noise."""
    if not requests:
        return []
    noise = draw_noise(model, [request.seed for request in requests], clip)
    return [(*video, *audio) for video, audio in zip(*(x.flatten(1).tolist() for x in noise), strict=True)]
