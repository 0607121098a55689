"""Sharded weights (FSDP2; Zhao et al., 2023, and ZeRO before it): every process holds some rows of each weight.

The ranks that share one copy of the model are `dp_shard x ring x ulysses`; `dp_replicate` such copies make a hybrid.
In sampling each branch of guidance has its own, since one may leave out the bridge that another gathers.

A block's weights are all-gathered before it runs, in its compute dtype, and freed after it; its gradients are
reduce-scattered in float32. FSDP gathers only the units that are executed: of two experts the one that the step trains,
which is the same on all ranks.

Weights are sharded along dimension 0, `ceil(rows / ranks)` rows for each rank; the last ranks may have fewer or none.
The rest of the engine sees a shard as a plain tensor: `LocalShard`.
"""

import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils import _pytree as pytree

from mova_engine.distributed.collectives import Group, open_group
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_rows
from mova_engine.models.mova import Mova
from mova_engine.models.tower import Tower, TowerInputs


@dataclass(frozen=True)
class LocalShard:
    """Rows `first`, `first + 1`, ... of a weight of `shape`, of which `tensor` holds as many as it has."""

    tensor: Tensor
    shape: tuple[int, ...]
    first: int = 0

    @property
    def rows(self) -> slice:
        """Which of the weight's rows these are; of a weight without dimensions, all there is."""
        return slice(self.first, self.first + len(self.tensor)) if self.shape else slice(0, 1)

    def take(self, whole: Tensor) -> None:
        """Copy own rows of the whole weight."""
        self.tensor.copy_(whole[self.rows] if self.shape else whole)


@dataclass(frozen=True)
class Shards:
    """The ranks among which weights are divided, and this one's place.

    group: those that hold one copy. copy: the number of the copy, 0 where there is one.
    """

    group: Group
    copy: int

    def piece(self, parameter: nn.Parameter) -> LocalShard:
        """This rank's rows of a sharded parameter, as a view, in the dtype that they are held in."""
        shape, local = tuple(parameter.shape), parameter.to_local().detach()
        first = min(-(-shape[0] // self.group.size) * self.group.rank, shape[0])
        return LocalShard(local, shape, first)

    def load(self, module: nn.Module, folder: str | Path) -> None:
        """Read this rank's rows of a sharded component's weights; MovaError as `load_component`."""
        pieces = {key: self.piece(parameter) for key, parameter in module.named_parameters()}
        read_rows(folder, {key: (piece.shape, piece.rows, piece.tensor) for key, piece in pieces.items()})


def shard_model(
    model: Mova, place: Processes, device: torch.device, dtype: torch.dtype = torch.float32, offload: bool = False
) -> Shards:
    """Divide the weights of `model`, which is on the meta device, among the ranks; they are undefined afterwards.

    dtype: what the model computes in; own rows stay in the dtype of `model`, float32 where it is to be trained, and so
    are their gradients. offload: own rows, gradients and with them the optimizer's state live in the host's memory.
    Gradients come out summed over the ranks that share a clip and averaged over those with different clips. Raises
    MovaError for a model that cannot be sharded.
    """
    # Imported where it is used: it takes a second.
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    _show_tower_inputs()
    bridge = model.dual_tower_bridge
    if bridge is not None and bridge.config.pooled_adaln:
        raise MovaError("the bridge's pooled variant cannot be sharded: set parallel.shard to false")
    copies, size = place.shape.cfg * place.shape.dp_replicate, place.shape.dp_shard * place.shape.context_parallel
    if size == 1:
        raise MovaError(
            f"{copies} copies of the weights (parallel.replicate x cfg) give every process a whole one, which leaves "
            "nothing to shard: lower that, or leave out parallel.shard"
        )
    sizes, names = ((copies, size), ("copy", "shard")) if copies > 1 else ((size,), ("shard",))
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)
    settings = {
        "mesh": mesh,
        # What a module is given stays as it is: times, rotations and norms are float32 in every precision.
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type != "cpu") if offload else OffloadPolicy(),
        "reshard_after_forward": True,
    }
    units = []
    for tower in (x for x in (model.video_dit, model.video_dit_2, model.audio_dit) if x is not None):
        units += [*tower.blocks, tower.head, tower]
    if bridge is not None:
        layers = (*bridge.audio_to_video_conditioners.values(), *bridge.video_to_audio_conditioners.values())
        # What remains of a bridge are its norms, which all layers gather together.
        units += [*(layer.inner for layer in layers), bridge]
    units.append(model)
    # Outputs are views of what an operator computed, and nobody changes them in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)
    for unit in units:
        fully_shard(unit, **settings)
        unit.set_gradient_divide_factor(place.shape.data_parallel)
        # A sum that is divided afterwards: not every collective library can divide while it sums, and all of them sum.
        unit.set_force_sum_reduction_for_comms(True)
        if isinstance(unit, Tower):
            # A tower's own weights are those of its embeddings; blocks and head are units of their own.
            register_fsdp_forward_method(unit, "embed")
    model.to_empty(device="cpu" if offload else device)
    group = open_group(mesh["shard"].get_group(), device)
    return Shards(group, mesh["copy"].get_local_rank() if copies > 1 else 0)


@functools.cache
def _show_tower_inputs() -> None:
    """FSDP looks for tensors in what a module returns, to gather its weights again before their gradients arrive: let
    it look into `TowerInputs`.
    """
    fields = tuple(TowerInputs.__dataclass_fields__)
    pytree.register_pytree_node(
        TowerInputs,
        lambda inputs: ([getattr(inputs, name) for name in fields], None),
        lambda values, _: TowerInputs(*values),
    )


@torch.no_grad()
def global_norm(gradients: list[Tensor], group: Group) -> Tensor:
    """The joint 2-norm of gradients of which each rank of the group has its rows, float32 and where they are; the same
    on all ranks.
    """
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients, dtype=torch.float32)])
    return group.all_reduce(norms.square().sum()).sqrt()


@torch.no_grad()
def clip_grad_norm(gradients: list[Tensor], max_norm: float, group: Group) -> Tensor:
    """The operator of that name over gradients of which each rank has its rows: scaled by the norm of all of them."""
    norm = global_norm(gradients, group)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(gradients, torch.where(torch.isfinite(norm), scale, torch.ones_like(scale)))
    return norm
