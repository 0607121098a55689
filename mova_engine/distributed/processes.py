"""The processes of a run: torchrun's environment, the process group, each rank's place in the mesh."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
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
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.ops import OpTable

# What torchrun sets on every machine, and what another launcher must set too.
_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# How long the others listen for what the first process says, when none of them can start.
_LISTENING = timedelta(seconds=20)
_HEAD_START_S = 2.0
# How long the others wait while one process encodes a data set, saves or samples.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Launch:
    """A process's number among all, on its machine, and how many there are."""

    rank: int = 0
    local_rank: int = 0
    world: int = 1


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """What the launcher says (environment: default the process's own); one process where there was none.

    Raises MovaError for an environment that names some of the variables only.
    """
    environment = os.environ if environment is None else environment
    if "WORLD_SIZE" not in environment and "RANK" not in environment:
        return Launch()
    missing = [name for name in _NEEDED if name not in environment]
    if missing:
        raise MovaError(
            f"one of several processes, but {', '.join(missing)} is not set: start them with torchrun, which sets "
            f"{', '.join(_NEEDED)}"
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
    """Around identical work of all ranks before their first collective: an error that all ranks share is raised by rank
    0 alone. A rank whose error differs from rank 0's raises its own, with its rank.
    """
    try:
        yield
    except MovaError as error:
        heard = _exchanged(launch, str(error)) if launch.world > 1 else None
        if launch.rank == 0:
            raise
        if heard == str(error):
            # The launcher kills all ranks once one has exited: rank 0 prints its error before that.
            time.sleep(_HEAD_START_S)
            raise SystemExit(2) from None
        raise MovaError(f"rank {launch.rank}: {error}") from error


def _exchanged(launch: Launch, said: str) -> str | None:
    """The first process's last words, which it leaves in torchrun's store; None where there are none in time."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    key = f"mova_refused/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, None, False, _LISTENING, wait_for_workers=False)
        if launch.rank == 0:
            store.set(key, said)
            return said
        store.wait([key], _LISTENING)
        return store.get(key).decode()
    except RuntimeError:
        return None


@dataclass
class Processes:
    """This process's place: `context` says which tokens of a clip are its own (None: all), data_rank of `shape`'s
    data_parallel groups which clips.
    """

    launch: Launch = field(default_factory=Launch)
    shape: MeshShape = field(default_factory=MeshShape)
    device_mesh: DeviceMesh | None = None
    context: ContextParallel | None = None
    data_rank: int = 0
    world_group: Group = field(default_factory=Group)
    # Those of guidance's branches, which compute on the same tokens, and all that work on the same clip.
    branches: Group = field(default_factory=Group)
    clip: Group = field(default_factory=Group)
    # Of the ranks that share a clip, for handing batches on; None: each makes its own.
    rounds: Rounds | None = None
    # On the CPU and with time: for what one process does alone while the others wait.
    cpu_group: Group = field(default_factory=Group)
    # Whether the process group was joined here, not by the program before.
    joined: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this process logs and writes."""
        return self.launch.rank == 0

    @property
    def sharding(self) -> Sharding:
        """Which tokens of a clip are this process's own."""
        return NO_CP if self.context is None else self.context

    def operators(self, ops: OpTable) -> OpTable:
        """The table to build a model with."""
        return ops if self.context is None else self.context.operators(ops)

    def all_reduce_max(self, number: int) -> int:
        """The largest number that any process gave; waits for all of them."""
        return int(self.world_group.all_reduce(torch.tensor([number]), maximum=True))

    def total(self, number: float) -> float:
        """The sum of the numbers that all processes gave; waits for all of them."""
        return float(self.world_group.all_reduce(torch.tensor([float(number)])))

    def wait_for_first(self, number: int = 0) -> int:
        """`most`, but as long as it takes: while the first process encodes, saves or samples."""
        return int(self.cpu_group.all_reduce(torch.tensor([number]), maximum=True))

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every process's small value, by rank."""
        return self.cpu_group.all_gather_object(value)

    def rows(self, total: int) -> Rows:
        """This process's share in decoding a clip of `total` latent rows."""
        return ALL_ROWS if self.clip.size == 1 else SharedRows(self.clip, total)

    def send_to_first(self, *tensors: torch.Tensor) -> None:
        """Hand tensors to the first process, which waits for them with `received`; as long as it takes."""
        for x in tensors:
            self.cpu_group.send(x, 0)

    def received(self, group: int, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """In the first process: what the first of those that make the clips of data-parallel group `group` sends it, on
        the CPU.
        """
        return self.cpu_group.receive(shape, dtype, group * self.shape.context_parallel)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The block runs in the first process, then in all others: what the first has written they find."""
        if not self.is_first:
            self.wait_for_first()
        yield
        if self.is_first:
            self.wait_for_first()

    def close(self) -> None:
        """Leave the process group, if it was joined here."""
        if self.joined:
            dist.destroy_process_group()


def start_processes(
    backend: Backend, launch: Launch, shape: MeshShape, timeout_s: float = 600.0, sampling: bool = False
) -> Processes:
    """Join the process group, unless the program has done so, and build the mesh. One process joins nothing.

    timeout_s: after which a rank that waits for another in vain gives up. sampling: outputs of a shared clip are
    gathered. Raises MovaError where they do not meet.
    """
    if launch.world != shape.world:
        raise MovaError(f"the mesh {shape} is of {shape.world} processes, but {launch.world} were started")
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
        # A group of some of the ranks does not take over the world's.
        parts = (cp_group, clips, clip_group, mesh["cfg"], mesh["ring"], mesh["ulysses"])
        for part in {id(part): part for part in parts}.values():
            _set_pg_timeout(timeout, part.get_group())
    device = backend.device(launch.local_rank)
    groups = [open_group(part.get_group(), device) for part in (cp_group, mesh["ring"], mesh["ulysses"])]
    rounds = None
    if shape.clip_ranks > 1:
        clip_groups = mesh.mesh.permute(1, 2, 0, 3, 4).reshape(-1, shape.clip_ranks).tolist()
        rounds = Rounds(open_cpu_group(timeout, clip_groups))
    return Processes(
        launch,
        shape,
        mesh,
        context=ContextParallel(*groups, gather=sampling) if shape.context_parallel > 1 else None,
        data_rank=clips.get_local_rank(),
        world_group=open_group(dist.group.WORLD, device),
        branches=open_group(mesh["cfg"].get_group(), device),
        clip=open_group(clip_group.get_group(), device),
        rounds=rounds,
        cpu_group=open_cpu_group(PATIENCE),
        joined=joined,
    )


def _join(backend: Backend, launch: Launch, timeout_s: float) -> None:
    backend.use_device(launch.local_rank)
    timeout = timedelta(seconds=timeout_s)
    try:
        dist.init_process_group(backend.collectives, timeout=timeout, rank=launch.rank, world_size=launch.world)
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise MovaError(
            f"rank {launch.rank} of {launch.world} did not meet the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} within {timeout_s:.0f} s: {first}"
        ) from error
