"""Computes for all ranks of a run, in one process, their places in the mesh and the plan of a sharded checkpoint.

What a rank does depends on its number only. The functions that a real rank calls are called here for every rank number,
and the results are checked for consistency. `train.simulation` does the same for the order of clips and for noise.
"""

import math
import pickle
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from mova_engine.checkpoints.integrity import RANGE
from mova_engine.config.mesh import DIMENSIONS, MeshShape
from mova_engine.distributed.fsdp import LocalShard, rows_of
from mova_engine.distributed.processes import Processes
from mova_engine.distributed.save_plan import Outline, RowsPlanner, outline_of, shared_out
from mova_engine.errors import MovaError
from mova_engine.rehearsal.result import Collective
from mova_engine.rehearsal.simulated import members_in_words

# Bytes of a written range's offset, length and CRC-32, as rank 0 receives them.
_CHECKSUM_BYTES = 3 * 8
# How many groups of a kind are listed with their members.
_SHOWN = 2


class Laps:
    """The seconds of the parts of a piece of work: calling it ends a part and names it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def __call__(self, part: str) -> None:
        now = time.perf_counter()
        self.seconds[part], self._since = round(now - self._since, 2), now


def groups_of(shape: MeshShape) -> dict[str, list[list[int]]]:
    """The ranks of all groups, by kind of group: one for each mesh dimension, and those that span several."""
    spans = {name: (name,) for name in DIMENSIONS}
    spans |= {"context_parallel": ("ring", "ulysses"), "data_parallel": ("dp_replicate", "dp_shard")}
    spans |= {"clip": ("cfg", "ring", "ulysses")}
    places = [shape.coordinates(rank) for rank in range(shape.world)]
    found = {}
    for name, span in spans.items():
        together: dict[tuple[int, ...], list[int]] = {}
        for rank, place in enumerate(places):
            together.setdefault(tuple(place[each] for each in DIMENSIONS if each not in span), []).append(rank)
        found[name] = list(together.values())
    return found


def simulate_mesh(shape: MeshShape, processes: Processes) -> tuple[list[list[int]], dict[str, dict[str, Any]]]:
    """Each rank's coordinates in the mesh; and for each kind of group with more than one rank, their number and size.

    They are compared with torch's device mesh and this rank's process groups. Raises MovaError if they differ.
    """
    mesh, groups = processes.device_mesh, groups_of(shape)
    if mesh is None:
        raise MovaError("mesh: one process has none")
    coordinates = [list(shape.coordinates(rank).values()) for rank in range(shape.world)]
    for rank, place in enumerate(coordinates):
        if int(mesh.mesh[tuple(place)]) != rank:
            raise MovaError(f"mesh: rank {rank} takes itself to be at {place}, where torch has another")
    for data_rank, members in enumerate(shape.clip_groups()):
        if members not in groups["clip"] or any(shape.data_rank(rank) != data_rank for rank in members):
            raise MovaError(f"mesh: ranks {members_in_words(members)} are no group that shares clips")
    own = processes.launch.rank
    for name in DIMENSIONS:
        there = dist.get_process_group_ranks(mesh[name].get_group())
        here = next(members for members in groups[name] if own in members)
        if sorted(there) != here:
            raise MovaError(f"mesh: rank {own} shares the group {name} with {there}, not with {here}")
    facts: dict[str, dict[str, Any]] = {}
    for name, found in groups.items():
        told = {"groups": len(found), "ranks": len(found[0]), "first": found[:_SHOWN]}
        # A kind that spans several dimensions, of which only one is larger than 1, repeats that dimension's groups.
        if len(found[0]) > 1 and told not in facts.values():
            facts[name] = told
    return coordinates, facts


def simulate_checkpoint(pieces: Mapping[str, LocalShard], world: int, shards: int) -> dict[str, Any]:
    """Bytes of each file of a checkpoint, and statistics of the plan by which the ranks write it.

    shards: the number of ranks among which each weight's rows are divided; 1: each rank has all rows, and rank 0 saves.
    pieces: rank 0's rows, on the meta device; those of the other ranks are computed from them (`fsdp.rows_of`). Raises
    MovaError if rows would be missing or written twice.
    """
    pieces = dict(sorted(pieces.items()))
    sizes = [piece.tensor.element_size() * math.prod(piece.shape) for piece in pieces.values()]
    by_file: dict[str, int] = {}
    for name, size in zip(pieces, sizes, strict=True):
        file = name.split(":", 1)[0]
        by_file[file] = by_file.get(file, 0) + size
    whole = sum(sizes)
    if shards == 1:
        return {"bytes": by_file, "writing_ranks": 1, "most_bytes_of_a_rank": whole, "plan": {}}
    outlines = _outlines(pieces, world, shards)
    _check_outlines(pieces, shards, outlines)
    planned = time.perf_counter()
    chosen = shared_out(outlines, list(pieces))
    seconds = time.perf_counter() - planned
    rows = [piece.shape[0] if piece.shape else 1 for piece in pieces.values()]
    row_bytes = np.array([size // count for size, count in zip(sizes, rows, strict=True)])
    written, ranges = [], 0
    for outline, own in zip(outlines, chosen, strict=True):
        counts = outline.kinds[outline.kind_of, 2] * own
        written.append(int(counts @ row_bytes))
        ranges += int(np.count_nonzero(counts))
    if sum(written) != whole:
        raise MovaError(f"checkpoint: {world} ranks would write {sum(written)} bytes of {whole}")
    return {
        "bytes": by_file,
        "writing_ranks": sum(size > 0 for size in written),
        "most_bytes_of_a_rank": max(written),
        "plan": {
            "weights": len(pieces),
            "local_seconds": round(_local_seconds(pieces), 3),
            "global_seconds": round(seconds, 3),
            "gathered_bytes": sum(len(pickle.dumps(outline)) for outline in outlines),
            "written_ranges": ranges,
            "gathered_checksum_bytes": ranges * _CHECKSUM_BYTES,
            # About: neighbours are joined.
            "checksums": sum(-(-size // RANGE) for size in by_file.values()),
        },
    }


def _outlines(pieces: Mapping[str, LocalShard], world: int, shards: int) -> list[Outline]:
    """The outlines of all ranks. Weights with the same number of rows have the same kind."""
    rows = np.array([piece.shape[0] if piece.shape else 0 for piece in pieces.values()])
    totals, kind_of = np.unique(rows, return_inverse=True)
    digest = outline_of(pieces).digest
    return [
        Outline(
            digest,
            np.array([(n, *rows_of(n, shards, rank % shards)) if n else (1, 0, 1) for n in totals.tolist()]),
            kind_of.reshape(-1).astype(np.min_scalar_type(len(totals))),
        )
        for rank in range(world)
    ]


def _check_outlines(pieces: Mapping[str, LocalShard], shards: int, outlines: Sequence[Outline]) -> None:
    """Raise MovaError if rank 0's computed outline is not the one that results from the rows that FSDP gave it."""
    own, worked_out = outline_of(pieces), outlines[0]
    if not np.array_equal(own.kinds[own.kind_of], worked_out.kinds[worked_out.kind_of]):
        raise MovaError(f"checkpoint: FSDP gives the first rank other rows than `rows_of` does of {shards} ranks")


def _local_seconds(pieces: Mapping[str, LocalShard]) -> float:
    started = time.perf_counter()
    planner = RowsPlanner()
    planner.set_up_planner(pieces)
    planner.create_local_plan()
    return time.perf_counter() - started


def sent_by_all(collectives: tuple[Collective, ...], world: int) -> dict[str, int]:
    """Bytes that all ranks send, by kind of collective, if each sends what rank 0 sends (some have a token less)."""
    found: dict[str, int] = {}
    for each in collectives:
        found[each.kind] = found.get(each.kind, 0) + each.bytes_sent * world
    return {kind: size for kind, size in found.items() if size}
