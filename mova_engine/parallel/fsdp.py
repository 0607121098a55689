"""Parameters, gradients and optimizer state sharded over processes (FSDP2, torch's `fully_shard`).

Over `dp_shard x ring x ulysses` flattened: the ranks that share a clip are as good as others for keeping parameters.
Each block, and each direction of each bridge layer, is gathered for its forward and again for its backward; of two
experts only the one that a step uses is. Gradients are summed over all ranks and divided by the number of
data-parallel groups alone, because a shared clip's gradients are shares (see `parallel.context`): never torch's default,
the mean over all ranks.
"""

import functools

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.utils import _pytree as pytree

from mova_engine.models.mova import Mova
from mova_engine.models.tower import Tower, TowerInputs
from mova_engine.parallel.processes import Processes


@functools.cache
def _show_tower_inputs() -> None:
    """FSDP looks for tensors in what a module returns, to gather it again before their gradients arrive: let it look
    into `TowerInputs`.
    """
    fields = tuple(TowerInputs.__dataclass_fields__)
    pytree.register_pytree_node(
        TowerInputs,
        lambda inputs: ([getattr(inputs, name) for name in fields], None),
        lambda values, _: TowerInputs(*values),
    )


def shard_model(model: Mova, processes: Processes, dtype: torch.dtype = torch.float32) -> None:
    """Shard a float32 model in place; it computes in `dtype`, gradients are summed and kept in float32.

    Its parameters become DTensors; build the optimizer from them afterwards. With one process nothing happens.
    """
    if processes.device_mesh is None:
        return
    _show_tower_inputs()
    mesh, shape = processes.device_mesh, processes.shape
    shards = mesh["dp_shard", "ring", "ulysses"]._flatten("shards")
    if shape.dp_replicate > 1:
        shards = mesh["dp_replicate", "shards"]
    # Inputs are cast by the models themselves, which keep time embeddings and modulations in float32.
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    settings = {"mesh": shards, "mp_policy": precision}
    for tower in (model.video_dit, model.video_dit_2, model.audio_dit):
        if tower is not None:
            _shard_tower(tower, settings)
    bridge = model.dual_tower_bridge
    if bridge is not None:
        for direction in (bridge.audio_to_video_conditioners, bridge.video_to_audio_conditioners):
            for conditioner in direction.values():
                fully_shard(conditioner.inner, **settings)
        fully_shard(bridge, **settings)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(float(shape.data_parallel))
            # Not every collective library multiplies before it sums.
            module.set_force_sum_reduction_for_comms(True)


def _shard_tower(tower: Tower, settings: dict) -> None:
    for block in tower.blocks:
        fully_shard(block, **settings)
    fully_shard(tower, **settings)
    # The forward of both towers together calls these in place of the tower itself.
    register_fsdp_forward_method(tower, "embed")
    register_fsdp_forward_method(tower, "finish")
