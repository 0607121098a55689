"""Lets one process act as one rank of many: torch's fake process group, whose collectives return at once.

Device meshes hold real numbers and are therefore built outside of the fake-tensor mode. `CollectiveLog` checks the
collectives. The functions patch torch in this process.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.distributed.device_mesh as device_mesh
from torch._subclasses import FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import _disable_current_modes

from mova_engine.backend import Backend
from mova_engine.distributed import fsdp, processes
from mova_engine.distributed.processes import Launch

_PROPAGATE = "_propagate_tensor_meta_non_cached"


def join_fake_group(device: str, launch: Launch) -> None:
    """Initialise a fake process group as rank `launch.rank` of `launch.world`; the other ranks do not exist."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    named = "fake" if device == "cpu" else f"cpu:fake,{device}:fake"
    dist.init_process_group(named, rank=launch.rank, world_size=launch.world, store=FakeStore())


@contextmanager
def fake_world(mode: FakeTensorMode) -> Iterator[None]:
    """Inside the with-block, CPU process groups are fake too, and device meshes are built outside of `mode`."""
    with ExitStack() as patches:
        for name in ("new_group", "new_subgroups_by_enumeration"):
            patches.enter_context(patch.object(dist, name, _without_gloo(getattr(dist, name))))
        for name in ("__init__", "__getitem__", "_flatten", "get_local_rank", "get_group"):
            original = getattr(device_mesh.DeviceMesh, name)
            patches.enter_context(patch.object(device_mesh.DeviceMesh, name, _outside(original)))
        patches.enter_context(patch.object(fsdp, "init_device_mesh", _outside(device_mesh.init_device_mesh)))
        patches.enter_context(patch.object(_fsdp_param, "_chunk_with_empty", _Chunks))
        patches.enter_context(
            patch.object(ShardingPropagator, _PROPAGATE, _unseen(getattr(ShardingPropagator, _PROPAGATE)))
        )
        # `open_group` runs a first collective, whose tensor must be fake.
        for module in (processes, fsdp):
            patches.enter_context(patch.object(module, "open_group", _inside(mode, module.open_group)))
        yield


def _without_gloo(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def fake(*args: Any, backend: Any = None, **kwargs: Any) -> Any:
        return function(*args, backend="fake", **kwargs)

    return fake


def _outside(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def real(*args: Any, **kwargs: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **kwargs)

    return real


def _unseen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hide a call from the active modes: DTensor runs operations on whole weights to learn their shapes, in a fake mode
    of its own, which use no memory and must not be counted.
    """

    @wraps(function)
    def alone(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return alone


def _inside(mode: FakeTensorMode, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def fake(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return function(*args, **kwargs)

    return fake


class _Chunks:
    """A weight's chunks, made when they are indexed. FSDP2 uses two of them, the first and its own; making 1,024 views
    of every weight takes minutes.
    """

    def __init__(self, tensor: torch.Tensor, num_chunks: int, dim: int) -> None:
        self.tensor, self.dim = tensor, dim
        self.rows = -(-tensor.shape[dim] // num_chunks)

    def __getitem__(self, index: int) -> torch.Tensor:
        start = index * self.rows
        length = min(self.rows, self.tensor.shape[self.dim] - start)
        return self.tensor.narrow(self.dim, start, length) if length > 0 else self.tensor.new_empty(0)


class AbsentBackend(Backend):
    """The backend of a device that this machine does not have: a name and an index, without speed or free memory."""

    collectives = "fake"
    changes_timeouts = False

    def __init__(self, described: Backend) -> None:
        self.name, self.float64 = described.name, described.float64
        self.device_of = described.device

    def unavailable(self) -> str | None:
        return None

    def describe(self) -> str:
        return f"{self.name}, fake"

    def device(self, index: int = 0) -> torch.device:
        return self.device_of(0)
