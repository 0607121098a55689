"""Sharded weights by FSDP2 (Zhao et al., 2023, after ZeRO): every process holds some rows of each weight.

One copy of the model is sharded over `dp_shard x ring x ulysses` ranks; `dp_replicate` such copies make HSDP. In
sampling each branch of guidance has its own copy, because one branch may skip the bridge that another all-gathers.

A block's weights are all-gathered in the compute dtype before the block runs, and freed after it. Its gradients are
reduce-scattered in float32. FSDP gathers only the units that run: of two experts, the one that the step trains, which
is the same on all ranks. What is outside of blocks, heads, embeddings and bridge layers (the bridge's norms) is in the
unit of the whole model, which is gathered once a forward.

A step of several micro-batches may keep what was gathered until its last backward, and may sum gradients over ranks
once (`MemoryConfig.gathered` and `gradients`). Copies of the weights sum theirs once in any case: until then each rank
has its rows' sum over the micro-batches. Sums are then in another order, equal up to rounding. What travels while a
layer computes is `MemoryConfig.prefetch`, see `unit_order`.

Weights are sharded along dimension 0, `ceil(rows / ranks)` rows for each rank; the last ranks may have fewer or none.
The rest of the engine sees a shard as a plain tensor, in a `LocalShard`.
"""

import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils import _pytree as pytree

from mova_engine.config.memory import MemoryConfig
from mova_engine.distributed.collectives import Group, open_group
from mova_engine.distributed.processes import Processes
from mova_engine.distributed.unit_order import gathered_ahead, running_layers
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_rows
from mova_engine.models.mova import Mova
from mova_engine.models.tower import Tower, TowerInputs


@dataclass(frozen=True)
class LocalShard:
    """Some rows of a weight. tensor: the rows, from row `first` on. shape: of the whole weight."""

    tensor: Tensor
    shape: tuple[int, ...]
    first: int = 0

    @property
    def rows(self) -> slice:
        """The rows' indices in the whole weight. A 0-dimensional weight counts as one row."""
        return slice(self.first, self.first + len(self.tensor)) if self.shape else slice(0, 1)

    def take(self, whole: Tensor) -> None:
        """Copy these rows of the whole weight `whole` into `tensor`."""
        self.tensor.copy_(whole[self.rows] if self.shape else whole)


def rows_of(rows: int, ranks: int, rank: int) -> tuple[int, int]:
    """(The first, how many) of a weight's rows that a rank has of so many."""
    each = -(-rows // ranks)
    first = min(each * rank, rows)
    return first, min(each, rows - first)


@dataclass(frozen=True)
class Shards:
    """How weights are sharded. group: the ranks that share one copy of the weights. copy: the index of this rank's copy
    (0 if there is only one). units: the FSDP modules, the whole model last. memory: as of `shard_model`.
    """

    group: Group
    copy: int
    units: tuple[Any, ...]
    memory: MemoryConfig

    def begin_micro_batch(self, last: bool, idle: Iterable[nn.Module] = ()) -> None:
        """Call it before each micro-batch of a step. last: the step's last one, after whose backward pass all gradients
        are summed over the ranks and all weights are sharded again. idle: components that the step does not use.
        """
        sums = last or self.memory.gradients != "step"
        # Rows that are summed over the copies later wait on the device, where offloaded gradients have no room.
        sums_copies = last or (sums and self.memory.weights_on_host)
        idle = list(idle)
        unused = {module for component in idle for module in component.modules()}
        if self.memory.prefetch != "unit":
            # What does not run must not be gathered: nobody would free it, and the next step would take it as it was.
            self._gather_ahead(*gathered_ahead(running_layers(self.units[-1], idle)))
        for unit in self.units:
            # FSDP takes for granted that a unit whose gradients it is to keep was gathered before.
            unit.set_requires_gradient_sync(sums or unit in unused, recurse=False)
            unit.set_requires_all_reduce(sums_copies, recurse=False)
            unit.set_reshard_after_backward(last or self.memory.gathered != "step", recurse=False)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """A with-block for forwards without a backward. What they gather is freed after each unit: the weights may
        change before the next forward, and both experts may run.
        """
        for unit in self.units:
            unit.set_reshard_after_forward(True, recurse=False)
        self._gather_ahead({}, {})
        try:
            yield
        finally:
            for unit in self.units[:-1]:
                unit.set_reshard_after_forward(self.memory.gathered != "step", recurse=False)
            self.units[-1].set_reshard_after_forward(False, recurse=False)

    def _gather_ahead(self, forward: dict[Any, list[Any]], backward: dict[Any, list[Any]]) -> None:
        """By unit those that are gathered as soon as it has been; others as FSDP does by itself."""
        for unit in self.units:
            unit.set_modules_to_forward_prefetch(forward.get(unit, []))
            unit.set_modules_to_backward_prefetch(backward.get(unit, []))

    def piece(self, parameter: Tensor) -> LocalShard:
        """Return this rank's rows of a sharded parameter (a DTensor), as a view, in the dtype that they are held in."""
        shape, local = tuple(parameter.shape), local_rows(parameter).detach()
        first, _ = rows_of(shape[0], self.group.size, self.group.rank)
        return LocalShard(local, shape, first)

    def load(self, module: nn.Module, folder: str | Path) -> None:
        """Read this rank's rows of a sharded component's weights. Raises MovaError as `load_component` does."""
        pieces = {key: self.piece(parameter) for key, parameter in module.named_parameters()}
        read_rows(folder, {key: (piece.shape, piece.rows, piece.tensor) for key, piece in pieces.items()})


def local_rows(parameter: Tensor) -> Tensor:
    """The rows of a sharded parameter that this rank holds; a parameter that is not sharded is returned as it is."""
    # Imported where it is used: it takes two seconds.
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def shard_model(
    model: Mova,
    place: Processes,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    memory: MemoryConfig | None = None,
) -> Shards:
    """Shard `model`, which is on the meta device, over the ranks. The weights' values are undefined afterwards.

    dtype: compute dtype. The shards keep the dtype of `model` (float32 for training), and so do their gradients.
    memory: whether shards and gradients, and with them the optimizer's state, are in host memory (`weights_on_host`);
    `prefetch`, and `gathered` and `gradients` of a step of several micro-batches, of which `Shards.begin_micro_batch`
    must be told.
    Gradients are summed over the ranks that share a clip and averaged over ranks with different clips. Raises MovaError
    for a model that cannot be sharded.
    """
    # Imported where it is used: it takes a second.
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    memory = memory or MemoryConfig()
    on_host = memory.weights_on_host
    _show_tower_inputs()
    bridge = model.dual_tower_bridge
    if bridge is not None and bridge.config.pooled_adaln:
        raise MovaError("the bridge's pooled variant cannot be sharded: set parallel.shard to false")
    copies, size = place.shape.cfg * place.shape.dp_replicate, place.shape.dp_shard * place.shape.context_parallel
    if size == 1:
        raise MovaError(
            f"with {copies} copies of the weights (parallel.replicate x cfg) every process holds a whole copy, and "
            "nothing is sharded: lower replicate or cfg, or leave out parallel.shard"
        )
    sizes, names = ((copies, size), ("copy", "shard")) if copies > 1 else ((size,), ("shard",))
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    settings = {
        "mesh": mesh,
        # Inputs are not cast: timesteps, rotations and norms are float32 in every precision.
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type != "cpu") if on_host else OffloadPolicy(),
        "reshard_after_forward": memory.gathered != "step",
    }
    units = []
    for tower in (x for x in (model.video_dit, model.video_dit_2, model.audio_dit) if x is not None):
        units += [*tower.blocks, tower.head, tower]
    if bridge is not None:
        layers = (*bridge.audio_to_video_conditioners.values(), *bridge.video_to_audio_conditioners.values())
        # The norms belong to the unit of the model: the bridge's forward runs once a layer, and would gather each time.
        units += [layer.inner for layer in layers]
    # The warned-of case does not occur: module outputs are views, but no code changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    for unit in units:
        fully_shard(unit, **settings)
    # What a step needs first in the forward and last in the backward stays between them.
    units.append(fully_shard(model, **{**settings, "reshard_after_forward": False}))
    for unit in units:
        unit.set_gradient_divide_factor(place.shape.data_parallel)
        # Reduce by a sum and divide afterwards: every collective library can sum, not every one can average.
        unit.set_force_sum_reduction_for_comms(True)
        if isinstance(unit, Tower):
            # The unit of a tower has the weights of its embeddings; its blocks and its head are separate units.
            register_fsdp_forward_method(unit, "embed")
    for method in ("forward_audio", "forward_side_by_side"):
        register_fsdp_forward_method(model, method)
    model.to_empty(device="cpu" if on_host else device)
    if memory.prefetch == "all":
        _sum_beside(units[-1], max(map(len, running_layers(model)), default=1))
    group = open_group(mesh["shard"].get_group(), device)
    copy = mesh["copy"].get_local_rank() if copies > 1 else 0
    return Shards(group, copy, tuple(units), memory)


def _sum_beside(model: Any, units: int) -> None:
    """Let so many units' gradients be on their way at once: those of a layer, while the one before it computes."""
    if not hasattr(model, "set_reduce_scatter_max_input_buffers"):
        raise MovaError(
            f"memory.prefetch all needs torch 2.13: torch {torch.__version__} waits for the gradients of each part of "
            "a layer; choose memory.prefetch weights"
        )
    model.set_reduce_scatter_max_input_buffers(units)


@functools.cache
def _show_tower_inputs() -> None:
    """Register `TowerInputs` as a pytree, so that FSDP finds the tensors in it.

    FSDP hooks the output tensors of a module, to gather the module's weights again before its backward.
    """
    fields = tuple(TowerInputs.__dataclass_fields__)
    pytree.register_pytree_node(
        TowerInputs,
        lambda inputs: ([getattr(inputs, name) for name in fields], None),
        lambda values, _: TowerInputs(*values),
    )


@torch.no_grad()
def global_norm(gradients: list[Tensor], group: Group) -> Tensor:
    """The 2-norm of all gradients together, of which each rank of the group holds its rows. float32, 0-dimensional, on
    the device of the gradients, the same on all ranks.
    """
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients, dtype=torch.float32)])
    return group.all_reduce(norms.square().sum()).sqrt()


@torch.no_grad()
def clip_grad_norm(gradients: list[Tensor], max_norm: float, group: Group) -> Tensor:
    """The operator `clip_grad_norm` for gradients of which each rank holds its rows. Scales them in place by
    max_norm / norm if the global norm exceeds `max_norm`; returns the norm (see `global_norm`).
    """
    norm = global_norm(gradients, group)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, torch.where(torch.isfinite(norm), scale, torch.ones_like(scale)))
    return norm
