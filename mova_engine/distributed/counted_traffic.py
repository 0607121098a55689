"""Measures the bytes that process groups send: in a training step of a model, and in the published reference's scheme.

For the reference (see `reference_traffic`) every attention of a forward runs on random q, k and v through the same
collectives, under full checkpointing, with its backward; the rest of its model sends nothing.
"""

import dataclasses
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mova_engine.backend import Backend, get_backend
from mova_engine.config.mesh import MeshShape, choose_mesh, lengths_of
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.distributed.collectives import total_sent
from mova_engine.distributed.context import ContextParallel, attention_kernels
from mova_engine.distributed.processes import Launch, read_launch, start_processes
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.modality import modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable, bind
from mova_engine.predict.context_traffic import reference_shape, reference_traffic, training_traffic

# For --count: MOVA's proportions of heads (40 and 12 become 8 and 4), 105 video tokens, 5 seconds / 24 of sound.
SMALL = MovaConfig(
    "small",
    VideoDiTConfig(dim=128, ffn_dim=32, num_heads=8, num_layers=4, text_dim=16, freq_dim=16),
    AudioDiTConfig(dim=64, ffn_dim=32, num_heads=4, num_layers=3, text_dim=16, freq_dim=16),
    BridgeConfig(4, 3, 128, 64, head_dim=16),
    ClipConfig(frames=9, height=80, width=112),
    experts=1,
    text_tokens=4,
)


def count_step(config: MovaConfig, ops: OpTable, context: ContextParallel, checkpointing: str, batch: int = 1) -> int:
    """Bytes that this rank sends in one forward and backward of a float32 model on random latents of its clip's
    shape.
    """
    model = Mova(config, context.operators(ops))
    model.init_weights(torch.Generator().manual_seed(0))
    device = context.whole.device
    model.to(device)
    frames, height, width = config.clip.latent_shape
    before = total_sent(context.groups)
    latents = torch.randn(batch, config.video.in_dim, frames, height, width, device=device)
    sound = torch.randn(batch, config.audio.in_dim, config.clip.audio_tokens, device=device)
    text = torch.randn(batch, config.text_tokens, config.video.text_dim, device=device)
    timestep = torch.full((batch,), 500.0)
    inputs = modalities(latents, sound, text, timestep, timestep)
    video, audio = model(*inputs, runner=layer_runner(checkpointing), sharding=context)
    (video.square().mean() + audio.square().mean()).backward()
    return total_sent(context.groups) - before


def count_reference(config: MovaConfig, ops: OpTable, context: ContextParallel, batch: int = 1) -> int:
    """Bytes that this rank sends in a step of the reference's scheme. The context's mesh must be `reference_shape`."""
    size, kernels = context.size, attention_kernels(ops)
    video, audio = (
        lengths_of(-(-tokens // size) * size, size) for tokens in (config.clip.video_tokens, config.clip.audio_tokens)
    )
    before = total_sent(context.groups)
    for queries, keys, tower, head_dim, layers in (
        (video, video, config.video, config.video.head_dim, config.video.num_layers),
        (audio, audio, config.audio, config.audio.head_dim, config.audio.num_layers),
        (video, audio, config.video, config.bridge.head_dim, len(config.bridge.layers)),
        (audio, video, config.audio, config.bridge.head_dim, len(config.bridge.layers)),
    ):
        attention = partial(context.attention, ops.attention, kernels, queries, keys)
        for _ in range(layers):
            shapes = ((batch, n[context.rank], tower.dim // head_dim, head_dim) for n in (queries, keys, keys))
            q, k, v = (torch.randn(shape, device=context.whole.device, requires_grad=True) for shape in shapes)
            out = checkpoint(_squared_attention, attention, q, k, v, use_reentrant=False)
            assert out is not None
            out.sum().backward()
    return total_sent(context.groups) - before


def _squared_attention(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # The square saves attention's output for its backward: as in a block, the recomputation has to repeat attention.
    return attention(q, k, v).square()


def count_as_rank(rank: int, size: int, port: int, results: Any) -> None:
    """Run as rank `rank` of `size` processes on this machine: count all schemes of the model SMALL, and put the merged
    results of `count_scheme` into the queue `results`.

    port: of the rendezvous, on 127.0.0.1.
    """
    torch.set_num_threads(1)
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    backend, found = get_backend("cpu"), {}
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
    for scheme in range(count_schemes(SMALL, size)):
        # A mesh has about nine groups of three gloo threads each: the groups of one scheme are closed before the next.
        own = dist.PrefixStore(str(scheme), store)
        dist.init_process_group(backend.collectives, store=own, rank=rank, world_size=size)
        found |= count_scheme(SMALL, backend, scheme)
        dist.destroy_process_group()
    results.put(found)


def count_schemes(config: MovaConfig, size: int) -> int:
    """The number of schemes for `size` processes: one per mesh, and the reference's."""
    return len(_shapes(config, size)) + 1


def count_scheme(config: MovaConfig, backend: Backend, scheme: int) -> dict[str, tuple[int, int]]:
    """Count one scheme in this process of an initialised process group: name -> (bytes counted, bytes by formula).

    scheme: from 0 to count_schemes(config, size) - 1. Each call opens new process groups.
    """
    launch = read_launch()
    ops, size = bind(backend), launch.world
    shapes = _shapes(config, size)
    if scheme == len(shapes):
        context = _context(backend, launch, reference_shape(config, size))
        formula = reference_traffic(config, size, rank=context.rank, element=4)
        return {"reference": (count_reference(config, ops, context), formula.total)}
    shape, found = shapes[scheme], {}
    context = _context(backend, launch, shape)
    for policy in ("none", "selective", "out", "full"):
        formula = training_traffic(config, shape, policy, rank=context.rank, element=4)
        found[f"{shape}, {policy}"] = count_step(config, ops, context, policy), formula.total
    return found


def _context(backend: Backend, launch: Launch, shape: MeshShape) -> ContextParallel:
    context = start_processes(backend, launch, shape).context
    assert context is not None, "every counted mesh shares the clip's tokens"
    return context


def _shapes(config: MovaConfig, size: int) -> list[MeshShape]:
    meshes = {choose_mesh(size, config.video.num_heads, context_parallel=size, ulysses=u) for u in (1, 2, size)}
    return sorted(meshes, key=dataclasses.astuple)
