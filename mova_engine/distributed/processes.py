"""The processes of a run: torchrun's environment variables, the process groups, each rank's position in the mesh."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from mova_engine.backend import Backend
from mova_engine.codecs.row_sharding import ALL_ROWS, Rows
from mova_engine.config.mesh import DIMENSIONS, MeshShape
from mova_engine.distributed.collectives import Group, open_cpu_group, open_group
from mova_engine.distributed.context import ContextParallel
from mova_engine.distributed.decoder_rows import SharedRows
from mova_engine.distributed.launch_store import has_launch_store, launch_store
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.ops import OpTable

# The environment variables that torchrun sets, and that any other launcher must set.
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# How long other ranks wait for rank 0's error message, and how long they let rank 0 print it before they exit.
_ERROR_TIMEOUT_S = 20.0
_HEAD_START_S = 2.0
# Timeout of waits for a process that encodes a data set, saves or samples alone.
_LONG_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Launch:
    """A process's rank, its rank on its machine, and the number of processes."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """Read rank and world size from the launcher's variables; a single process if none of them is set.

    environment: default: `os.environ`. Raises MovaError if only some of the variables are set, or if they are invalid.
    """
    environment = os.environ if environment is None else environment
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Launch()
    missing = [name for name in _NEEDED if name not in environment]
    if missing:
        raise MovaError(
            f"this is one of several processes, but {', '.join(missing)} is not set: start them with torchrun, which "
            f"sets {', '.join(_NEEDED)}"
        )
    try:
        launch = Launch(*(int(environment[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))
    except ValueError as error:
        raise MovaError(f"RANK, LOCAL_RANK and WORLD_SIZE must be whole numbers: {error}") from error
    if not 0 <= launch.rank < launch.world:
        raise MovaError(f"RANK is {launch.rank} of WORLD_SIZE {launch.world}")
    return launch


@contextmanager
def rank0_first(launch: Launch) -> Iterator[None]:
    """A with-block for work that all ranks do identically before their first collective.

    If all ranks fail with the same MovaError, only rank 0 raises it; the others exit with status 2. A rank whose error
    differs from rank 0's raises its own, prefixed by its rank.
    """
    try:
        yield
    except MovaError as error:
        first = _share_first_error(launch, str(error)) if launch.world > 1 else None
        if launch.rank == 0:
            raise
        if first == str(error):
            # The launcher kills all ranks once one has exited: rank 0 prints its error before that.
            time.sleep(_HEAD_START_S)
            raise SystemExit(2) from None
        raise MovaError(f"rank {launch.rank}: {error}") from error


def _share_first_error(launch: Launch, message: str) -> str | None:
    """Return rank 0's error message, which rank 0 (with its `message`) writes to torchrun's store. None if there is no
    such store, or no message within the timeout.
    """
    if not has_launch_store():
        return None
    try:
        store = launch_store(launch.rank, launch.world, _ERROR_TIMEOUT_S)
        if launch.rank == 0:
            store.set("refused", message)
            return message
        store.wait(["refused"], timedelta(seconds=_ERROR_TIMEOUT_S))
        return store.get("refused").decode()
    except (RuntimeError, TimeoutError):
        return None


@dataclass
class Processes:
    """This process's position in the mesh, and its process groups.

    context: this rank's share of a clip's video tokens; None: all tokens. data_rank: index of this rank's data-parallel
    group, which determines its clips, from 0 to `shape.data_parallel` - 1. branches: the ranks that evaluate different
    guidance branches of the same tokens. clip: all ranks that work on the same clip. rounds: the exchange of batches
    among the ranks of `clip`; None: each rank makes its own batches. cpu_group: all ranks, on the CPU, with a timeout
    of days, to wait for work that one process does alone. joined: whether `start_processes` initialised the process
    group.
    """

    launch: Launch = field(default_factory=Launch)
    shape: MeshShape = field(default_factory=MeshShape)
    device_mesh: DeviceMesh | None = None
    context: ContextParallel | None = None
    data_rank: int = 0
    world_group: Group = field(default_factory=Group)
    branches: Group = field(default_factory=Group)
    clip: Group = field(default_factory=Group)
    rounds: Rounds | None = None
    cpu_group: Group = field(default_factory=Group)
    joined: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.launch.rank == 0

    @property
    def sharding(self) -> Sharding:
        """This process's share of a clip's tokens, as the model takes it."""
        return NO_CP if self.context is None else self.context

    def operators(self, ops: OpTable) -> OpTable:
        """Return the operators to build a model with: `ops`, distributed over the context-parallel group if any."""
        return ops if self.context is None else self.context.operators(ops)

    def all_reduce_max(self, number: int) -> int:
        """Return the maximum of `number` over all processes."""
        return int(self.world_group.all_reduce(torch.tensor([number]), maximum=True))

    def wait_for_first(self, number: int = 0) -> int:
        """As `all_reduce_max`, but with a timeout of days: waits while rank 0 encodes, saves or samples alone."""
        return int(self.cpu_group.all_reduce(torch.tensor([number]), maximum=True))

    def all_gather_object(self, value: Any) -> list[Any]:
        """Return the small, picklable values of all processes, by rank."""
        return self.cpu_group.all_gather_object(value)

    def rows(self, total: int) -> Rows:
        """Return this process's share in decoding a clip of `total` latent rows."""
        return ALL_ROWS if self.clip.size == 1 else SharedRows(self.clip, total)

    def send_object_to_first(self, value: Any) -> None:
        """Send a picklable value to rank 0, which calls `receive_object_from`. The timeout is days."""
        self.cpu_group.send_object(value, 0)

    def receive_object_from(self, group: int) -> Any:
        """In rank 0: receive a value from the first rank of data-parallel group `group`."""
        return self.cpu_group.receive_object(group * self.shape.context_parallel)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Run the with-block in rank 0, then in all other processes, which find the files that rank 0 has written."""
        if not self.is_first:
            self.wait_for_first()
        yield
        if self.is_first:
            self.wait_for_first()

    def close(self) -> None:
        """Destroy the process group if `start_processes` initialised it."""
        if self.joined:
            dist.destroy_process_group()


def start_processes(
    backend: Backend, launch: Launch, shape: MeshShape, timeout_s: float = 600.0, sampling: bool = False
) -> Processes:
    """Initialise the process group, unless that is done already, and build the mesh and its groups. Collective. A
    single process gets no process group.

    timeout_s: timeout of collectives, in seconds. sampling: context parallelism gathers its outputs on all ranks.
    Raises MovaError if the mesh does not fit the number of processes, or if the processes do not connect in time.
    """
    if launch.world != shape.world:
        raise MovaError(f"the mesh {shape} needs {shape.world} processes, but {launch.world} were started")
    if launch.world == 1:
        return Processes(launch, shape)
    joined = not dist.is_initialized()
    if joined:
        _join(backend, launch, timeout_s)
    mesh = init_device_mesh(backend.name, shape.sizes, mesh_dim_names=DIMENSIONS)
    cp_group = mesh["ring", "ulysses"]._flatten("context_parallel")
    clips = mesh["dp_replicate", "dp_shard"]._flatten("data_parallel")
    clip_group = mesh["cfg", "ring", "ulysses"]._flatten("clip") if shape.cfg > 1 else cp_group
    timeout = timedelta(seconds=timeout_s)
    if backend.changes_timeouts:
        # Sub-groups do not inherit the timeout of the default group.
        parts = (cp_group, clips, clip_group, mesh["cfg"], mesh["ring"], mesh["ulysses"])
        for part in {id(part): part for part in parts}.values():
            _set_pg_timeout(timeout, part.get_group())
    world_group = dist.group.WORLD
    assert world_group is not None, "the process group is initialised"
    device = backend.device(launch.local_rank)
    groups = [open_group(part.get_group(), device) for part in (cp_group, mesh["ring"], mesh["ulysses"])]
    rounds = None
    if shape.clip_ranks > 1:
        rounds = Rounds(open_cpu_group(timeout, shape.clip_groups()))
    return Processes(
        launch,
        shape,
        mesh,
        context=ContextParallel(*groups, gather=sampling) if shape.context_parallel > 1 else None,
        data_rank=shape.data_rank(launch.rank),
        world_group=open_group(world_group, device),
        branches=open_group(mesh["cfg"].get_group(), device),
        clip=open_group(clip_group.get_group(), device),
        rounds=rounds,
        cpu_group=open_cpu_group(_LONG_TIMEOUT),
        joined=joined,
    )


def _join(backend: Backend, launch: Launch, timeout_s: float) -> None:
    backend.use_device(launch.local_rank)
    timeout = timedelta(seconds=timeout_s)
    try:
        # Without a launcher's store rank 0 opens one, which ends with it.
        store = launch_store(launch.rank, launch.world, timeout_s) if has_launch_store() else None
        dist.init_process_group(
            backend.collectives, timeout=timeout, rank=launch.rank, world_size=launch.world, store=store
        )
    except (RuntimeError, ValueError, TimeoutError) as error:
        first = str(error).splitlines()[0]
        raise MovaError(
            f"rank {launch.rank} of {launch.world} could not connect to the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {timeout_s:.0f} s: {first}"
        ) from error
