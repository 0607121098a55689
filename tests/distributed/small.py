"""The small models and clips of the checks, the same in all processes, and a step of them."""

import functools
from dataclasses import replace

import torch
from distributed.device import backend, device
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.config.diffusion import LossWeights
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import choose_mesh
from mova_engine.config.model import AudioDiTConfig, BridgeConfig, ClipConfig, MovaConfig, VideoDiTConfig
from mova_engine.diffusion.loss import Share, velocity_loss
from mova_engine.distributed.counted_traffic import SMALL
from mova_engine.distributed.fsdp import Shards, shard_model
from mova_engine.distributed.processes import Processes, read_launch, start_processes
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.modality import Modality, modalities
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable, bind

# Video heads; as many ranks can exchange them. Twice as many where eight do.
HEADS = 4
# A quarter of MOVA's: of heads of 128, a model is so large that filling its memory takes most of a check's time.
HEAD_DIM = 32
# Tokens of the video and a grid (frames, rows, columns) that has so many.
GRIDS = {3: (3, 1, 1), 7: (7, 1, 1), 64: (4, 4, 4), 403: (13, 31, 1), 1001: (13, 11, 7)}
AUDIO_TOKENS = 13
# The model whose traffic is counted: as few layers as tell the numbers of video, bridge and one apart.
COUNTED = replace(
    SMALL,
    video=replace(SMALL.video, num_layers=3),
    audio=replace(SMALL.audio, num_layers=2),
    bridge=replace(SMALL.bridge, visual_layers=3, audio_layers=2),
)


def config(heads: int = HEADS) -> MovaConfig:
    """Two experts of two layers, or of one where the video tower has more heads than `HEADS`."""
    layers = 2 if heads == HEADS else 1
    sizes = {"num_layers": layers, "text_dim": 32, "freq_dim": 16}
    video = VideoDiTConfig(dim=HEAD_DIM * heads, ffn_dim=64 * heads, num_heads=heads, **sizes)
    audio = AudioDiTConfig(dim=HEAD_DIM, ffn_dim=128, num_heads=1, **sizes)
    bridge = BridgeConfig(layers, layers, video.dim, audio.dim, head_dim=HEAD_DIM)
    return MovaConfig("narrow", video, audio, bridge, ClipConfig(frames=5, height=32, width=48), experts=2)


def processes(ulysses: int | None, context_parallel: int | None = None) -> Processes:
    """The world as a mesh; None: the whole world shares one clip."""
    launch = read_launch()
    torch.set_num_threads(1)
    heads = max(HEADS, ulysses or 0)
    shape = choose_mesh(launch.world, heads, context_parallel=context_parallel or launch.world, ulysses=ulysses)
    return start_processes(backend(), launch, shape, timeout_s=120)


@functools.cache
def _weights(heads: int) -> dict[str, Tensor]:
    """The same weights everywhere; none is zero. Drawing them takes longer than most steps."""
    source = torch.Generator().manual_seed(5)
    model = Mova(config(heads), bind(get_backend("cpu")))
    model.init_weights(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.02)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def build(ops: OpTable, heads: int = HEADS) -> Mova:
    """The same model everywhere."""
    model = Mova(config(heads), ops, device="meta")
    copies = {name: weight.to(device(), copy=True) for name, weight in _weights(heads).items()}
    model.load_state_dict(copies, assign=True)
    return model


@torch.no_grad()
def build_sharded(
    place: Processes, ops: OpTable, dtype: torch.dtype = torch.float32, offload: bool = False, heads: int = HEADS
) -> tuple[Mova, Shards]:
    """The same model, of which every rank has its rows."""
    model = Mova(config(heads), ops, device="meta")
    shards = shard_model(model, place, device(), dtype, MemoryConfig(optimizer="host" if offload else "device"))
    for name, parameter in model.named_parameters():
        shards.piece(parameter).take(_weights(heads)[name])
    return model, shards


def clips(tokens: int, batch: int, seed: int = 11) -> dict[str, Tensor]:
    """Inputs and targets of a step."""
    g = torch.Generator().manual_seed(seed)
    t, h, w = GRIDS[tokens]
    shapes = {
        "video_input": (batch, 36, t, 2 * h, 2 * w),
        "audio_latents": (batch, 128, AUDIO_TOKENS),
        "context": (batch, 5, 32),
        "video_target": (batch, 16, t, 2 * h, 2 * w),
        "audio_target": (batch, 128, AUDIO_TOKENS),
    }
    tensors = {name: torch.randn(shape, generator=g) for name, shape in shapes.items()}
    tensors["video_timestep"] = torch.rand(batch, generator=g) * 1000
    tensors["audio_timestep"] = torch.rand(batch, generator=g) * 1000
    return {name: x.to(device()) for name, x in tensors.items()}


def both(inputs: dict[str, Tensor], per_frame: bool = False) -> tuple[Modality, Modality]:
    """The inputs among `clips`. per_frame: a timestep for each latent frame, of which the first is given."""
    names = ("video_input", "audio_latents", "context", "video_timestep", "audio_timestep")
    video, audio = modalities(*(inputs[name] for name in names))
    if per_frame:
        frames = range(video.latents.shape[2])
        table = torch.stack([video.timestep / (1 + frame) for frame in frames], 1)
        video = replace(video, timestep=table, index=tuple(frames), given=tuple(frame == 0 for frame in frames))
        audio = replace(audio, given=(True,) * 5 + (False,) * (AUDIO_TOKENS - 5))
    return video, audio


def backward(
    model: Mova,
    inputs: dict[str, Tensor],
    expert: int,
    sharding: Sharding = NO_CP,
    per_frame: bool = False,
    **options,
) -> Tensor:
    """Forward, loss and gradients of one step; returns this process's share of the loss."""
    targets = inputs["video_target"], inputs["audio_target"]
    video, audio = model(*both(inputs, per_frame), expert=expert, sharding=sharding, **options)
    share = Share(model.expert(expert).own_latents(targets[0].shape, sharding, video.device), 1 / sharding.size)
    loss = velocity_loss(video, targets[0], audio, targets[1], LossWeights(audio=0.7, skip_first_frame=True), share)
    loss.total.backward()
    return loss.total.detach()
