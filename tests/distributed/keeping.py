"""What checkpointing keeps for the backward, counted in the processes of a World."""

import gc

import torch
from distributed.device import backend, device

from mova_engine.config.mesh import choose_mesh
from mova_engine.distributed.counted_traffic import SMALL
from mova_engine.distributed.processes import read_launch, start_processes
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.context_parallel import NO_CP
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.ops import bind
from mova_engine.ops.saved_outputs import SavedOps


def kept_bytes(checkpointing: str, ulysses: int) -> int:
    """Bytes of results that a forward of the small model has put aside in this rank, in float32."""
    launch = read_launch()
    shape = choose_mesh(launch.world, SMALL.video.num_heads, context_parallel=launch.world, ulysses=ulysses)
    place = start_processes(backend(), launch, shape)
    return count(checkpointing, place.sharding, place.operators(bind(backend())))


def count(checkpointing: str, sharding=NO_CP, ops=None) -> int:
    config = SMALL
    model = Mova(config, ops or bind(backend()))
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(device())
    frames, height, width = config.clip.latent_shape
    outputs = dual_tower_forward(
        model.expert(0),
        model.audio_dit,
        model.dual_tower_bridge,
        torch.randn(1, config.video.in_dim, frames, height, width, device=device()),
        torch.randn(1, config.audio.in_dim, config.clip.audio_tokens, device=device()),
        torch.randn(1, config.text_tokens, config.video.text_dim, device=device()),
        torch.full((1,), 500.0, device=device()),
        torch.full((1,), 500.0, device=device()),
        runner=layer_runner(checkpointing),
        sharding=sharding,
    )
    found = [each for each in gc.get_objects() if type(each) is SavedOps]
    total = sum(x.numel() * x.element_size() for each in found for result in each.results for x in result)
    # The graph, and with it what is kept, lives until here.
    del outputs
    return total
