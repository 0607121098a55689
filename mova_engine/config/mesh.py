"""The mesh of processes: `cfg x dp_replicate x dp_shard x ring x ulysses`, the last running fastest.

Ranks that differ in ring and Ulysses coordinate alone share a clip (context parallelism); they are neighbours, so that
they sit on one machine where it is large enough. `cfg` gives the branches of guidance to different ranks in sampling.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mova_engine.errors import MovaError

DIMENSIONS = ("cfg", "dp_replicate", "dp_shard", "ring", "ulysses")
# How many other meshes a refusal proposes.
PROPOSALS = 3
# Chunks of a rank's heads, at least, where they can be divided. More hide more of the first and last exchange, and cost
# a latency and a smaller attention each.
_LEAST_CHUNKS = 2


@dataclass(frozen=True)
class MeshShape:
    """Ranks along each dimension."""

    cfg: int = 1
    dp_replicate: int = 1
    dp_shard: int = 1
    ring: int = 1
    ulysses: int = 1

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, name) for name in DIMENSIONS)

    @property
    def world(self) -> int:
        """Processes in all."""
        return math.prod(self.sizes)

    @property
    def context_parallel(self) -> int:
        """Ranks that share a clip."""
        return self.ring * self.ulysses

    @property
    def clip_ranks(self) -> int:
        """Ranks that work on the same clip, guidance's branches counted."""
        return self.cfg * self.context_parallel

    @property
    def data_parallel(self) -> int:
        """Groups that work on different clips."""
        return self.dp_replicate * self.dp_shard

    def coordinates(self, rank: int) -> dict[str, int]:
        """Where a rank lies along each dimension."""
        found = {}
        for name in reversed(DIMENSIONS):
            rank, found[name] = divmod(rank, getattr(self, name))
        return {name: found[name] for name in DIMENSIONS}

    def data_rank(self, rank: int) -> int:
        """Which of the data-parallel groups a rank belongs to."""
        return rank // self.context_parallel % self.data_parallel

    def clip_groups(self) -> list[list[int]]:
        """The ranks that work on the same clips, by data-parallel group."""
        groups: list[list[int]] = [[] for _ in range(self.data_parallel)]
        for rank in range(self.world):
            groups[self.data_rank(rank)].append(rank)
        return groups

    def __str__(self) -> str:
        return (
            " x ".join(f"{name} {size}" for name, size in zip(DIMENSIONS, self.sizes, strict=True) if size > 1) or "1"
        )


def choose_mesh(
    world: int,
    heads: int,
    *,
    context_parallel: int = 1,
    ulysses: int | None = None,
    dp_replicate: int = 1,
    cfg: int = 1,
    branches: int | None = None,
) -> MeshShape:
    """The mesh of `world` processes for a video tower of `heads` heads; branches: guidance's evaluations of a step.

    ulysses None: the largest divisor of context_parallel that divides the heads; what remains of that is a ring.
    What other dimensions leave of the world shards the model (dp_shard). Raises MovaError that names the number which
    does not divide, and proposes the nearest meshes.
    """
    for name, value in (("context_parallel", context_parallel), ("dp_replicate", dp_replicate), ("cfg", cfg)):
        if value < 1:
            raise MovaError(f"mesh: {name} must be at least 1, got {value}")
    width = largest_ulysses(context_parallel, heads) if ulysses is None else ulysses
    wanted = MeshShape(cfg, dp_replicate, 1, max(context_parallel // max(width, 1), 1), width)

    def refusal(reason: str) -> MovaError:
        return _refusal(reason, world, heads, wanted, branches)

    if width < 1 or context_parallel % width:
        raise refusal(f"ulysses {width} does not divide context_parallel {context_parallel}")
    if heads % width:
        raise refusal(f"ulysses {width} does not divide the video tower's {heads} heads")
    if branches is not None and cfg > branches:
        evaluations = f"{branches} evaluation{'s' if branches > 1 else ''}"
        raise refusal(f"cfg {cfg} is more than guidance's {evaluations} a step")
    fixed = cfg * dp_replicate * context_parallel
    if world % fixed:
        parts = " x ".join(
            f"{name} {size}"
            for name, size in (("cfg", cfg), ("dp_replicate", dp_replicate), ("context_parallel", context_parallel))
            if size > 1
        )
        raise refusal(f"{parts} does not divide the {world} processes")
    return replace(wanted, dp_shard=world // fixed)


def accumulation(mesh: MeshShape, clips: int | None, batch: int, *, replicate: int = 1, sharing: bool = True) -> int:
    """How many micro-batches of `batch` clips each group of processes takes in a step of `clips` over all of them; one
    where clips is None.

    replicate: copies of the weights that every mesh must allow. sharing: whether clips can be shared. Raises MovaError
    where the groups do not divide the clips, and names the nearest meshes, micro-batches and steps for which they do.
    """
    at_once = mesh.data_parallel * batch
    if clips is None or clips % at_once == 0:
        return 1 if clips is None else clips // at_once
    fit: list[str] = []
    if sharing:
        sizes = [
            size
            for size in _divisors(mesh.world)
            if mesh.world // size % replicate == 0 and clips % (mesh.world // size * batch) == 0
        ]
        nearest = sorted(sizes, key=lambda size: abs(math.log2(size / mesh.context_parallel)))[:PROPOSALS]
        fit += [f"--parallel.context-parallel {size}" for size in nearest]
    if clips % mesh.data_parallel == 0:
        each = clips // mesh.data_parallel
        fit.append(f"--loader.batch {max(size for size in _divisors(each) if size < batch)}")
    fit += [
        f"--global-batch-size {size}" for size in (clips // at_once * at_once, -(-clips // at_once) * at_once) if size
    ]
    groups = f"{mesh.data_parallel} group{'s' if mesh.data_parallel > 1 else ''} of processes"
    raise MovaError(
        f"global_batch_size {clips} is no multiple of {at_once}, the clips of {groups} with loader.batch {batch}. "
        f"Nearest that fit: {'; '.join(fit)}"
    )


def largest_ulysses(context_parallel: int, heads: int) -> int:
    """The largest divisor of context_parallel that divides the heads."""
    return math.gcd(context_parallel, heads)


def lengths_of(total: int, parts: int) -> tuple[int, ...]:
    """`total` tokens over `parts` ranks as evenly as whole tokens allow: the first ranks have one more."""
    return tuple(total // parts + (rank < total % parts) for rank in range(parts))


def head_chunks(share: int) -> int:
    """Into how many chunks the `share` heads of a Ulysses rank are divided, one of which is attended to while the next
    one is exchanged: the least divisor of at least `_LEAST_CHUNKS`.
    """
    return next((n for n in range(_LEAST_CHUNKS, share) if share % n == 0), share)


def _refusal(reason: str, world: int, heads: int, wanted: MeshShape, branches: int | None) -> MovaError:
    def distance(mesh: MeshShape) -> tuple[float, ...]:
        # The context-parallel size is what a user cares about most; dp_shard is whatever is left.
        names = ("context_parallel", "cfg", "dp_replicate", "ulysses")
        return tuple(abs(math.log2(getattr(mesh, name) / max(getattr(wanted, name), 1))) for name in names)

    nearest = sorted(_meshes(world, heads, wanted, branches), key=lambda mesh: (distance(mesh), mesh.sizes))[:PROPOSALS]
    return MovaError(f"mesh: {reason}. Nearest that fit: {'; '.join(map(str, nearest))}")


def _meshes(world: int, heads: int, wanted: MeshShape, branches: int | None) -> Iterator[MeshShape]:
    """Meshes of `world` processes, with cfg as wanted, 1 or as many as there are branches, dp_replicate as wanted or 1,
    and as many Ulysses ranks as can be.
    """
    most = wanted.cfg if branches is None else branches
    branchings = {1, min(wanted.cfg, most), most}
    for context_parallel in _divisors(world):
        rest = world // context_parallel
        width = largest_ulysses(context_parallel, heads)
        for cfg in branchings & set(_divisors(rest)):
            for dp_replicate in {1, wanted.dp_replicate} & set(_divisors(rest // cfg)):
                shard = rest // cfg // dp_replicate
                yield MeshShape(cfg, dp_replicate, shard, context_parallel // width, width)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]
