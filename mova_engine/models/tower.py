"""A tower: patches in, blocks, patches out. The video and audio DiT differ in patches and rotary table only."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mova_engine.config.model import TowerConfig
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.layers import Block, Head, ResidualStream, Rope, sinusoid, time_mlp
from mova_engine.models.rope import RopeTables
from mova_engine.ops import OpTable


@dataclass(frozen=True)
class TowerInputs:
    """What a tower's blocks and head need beside the residual stream.

    t [b, d] and t_mod [b, 6, d] float32; context [b, n, d]; grid: tokens along each patch axis, of the whole clip.
    """

    t: Tensor
    t_mod: Tensor
    context: Tensor
    rope: Rope
    grid: tuple[int, ...]
    sharding: Sharding = NO_CP

    @property
    def tokens(self) -> int:
        """Of the whole clip."""
        return math.prod(self.grid)


class Tower(nn.Module):
    """Base of VideoDiT and AudioDiT: embeddings, `config.num_layers` blocks and the head."""

    def __init__(
        self,
        config: TowerConfig,
        ops: OpTable,
        self_attention: Callable,
        patch_embedding: nn.Conv1d | nn.Conv3d,
        patch_volume: int,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.config, self.ops, self.tables = config, ops, RopeTables()
        dim = config.dim
        self.patch_embedding = patch_embedding
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim, **factory), nn.GELU(approximate="tanh"), nn.Linear(dim, dim, **factory)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim, **factory), nn.SiLU(), nn.Linear(dim, dim, **factory)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim, **factory))
        self.blocks = nn.ModuleList(Block(config, ops, self_attention, **factory) for _ in range(config.num_layers))
        self.head = Head(config, patch_volume, ops, **factory)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the tower computes, and activations flow."""
        # Of a parameter that `embed` uses: sharded ones have it only while they are gathered.
        return self.patch_embedding.weight.dtype

    def embed_time(self, timestep: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """timestep [b] or [1] on the 0..1000 scale -> t [b, d] and t_mod [b, 6, d], float32."""
        if timestep.ndim != 1 or timestep.shape[0] not in (1, batch):
            raise MovaError(f"timestep must have shape [1] or [{batch}] (one per sample), got {list(timestep.shape)}")
        device = next(self.time_embedding.parameters()).device
        frequencies = sinusoid(timestep, self.config.freq_dim).to(device, torch.float32)
        t = time_mlp(self.time_embedding, frequencies)
        t_mod = time_mlp(self.time_projection, t).unflatten(1, (6, -1))
        return t.expand(batch, -1), t_mod.expand(batch, -1, -1)

    def embed_text(self, context: Tensor) -> Tensor:
        """Text features [b, n, text_dim] -> [b, n, d]."""
        if context.ndim != 3 or context.shape[-1] != self.config.text_dim:
            raise MovaError(f"text features must be [batch, tokens, {self.config.text_dim}], got {list(context.shape)}")
        return self.text_embedding(context.to(self.dtype))

    def patchify(self, latents: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Latents -> patches [b, s, in_dim * patch volume] and their grid."""
        raise NotImplementedError

    def unpatchify(self, patches: Tensor, grid: tuple[int, ...]) -> Tensor:
        """The head's output [b, s, out_dim * patch volume] -> latents."""
        raise NotImplementedError

    def rope(self, grid: tuple[int, ...], device: torch.device) -> Rope:
        """Rotary tables of a grid."""
        raise NotImplementedError

    def embed(
        self, latents: Tensor, timestep: Tensor, context: Tensor, sharding: Sharding = NO_CP
    ) -> tuple[ResidualStream, TowerInputs]:
        """Everything before the first block; the stream holds the sharding's own tokens."""
        if context.shape[0] != latents.shape[0]:
            raise MovaError(f"text has batch {context.shape[0]} but the latents have batch {latents.shape[0]}")
        patches, grid = self.patchify(latents.to(self.dtype))
        # The convolution's stride is its kernel: a matrix product over patches, and much faster as one on CPUs.
        embedding = self.patch_embedding
        tokens = F.linear(sharding.shard(patches), embedding.weight.flatten(1), embedding.bias)
        t, t_mod = self.embed_time(timestep, latents.shape[0])
        cos, sin = self.rope(grid, latents.device)
        rope = sharding.shard(cos, 0), sharding.shard(sin, 0)
        return ResidualStream(tokens), TowerInputs(t, t_mod, self.embed_text(context), rope, grid, sharding)

    def finish(self, stream: ResidualStream, inputs: TowerInputs) -> Tensor:
        """Everything after the last block: the tower's output in latent shape, of own tokens where it is sharded."""
        return self.unpatchify(inputs.sharding.unshard(self.head(stream, inputs.t), inputs.tokens), inputs.grid)

    def forward(self, latents: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """The tower alone: latents, timestep [b] or [1], text features [b, n, text_dim] -> output latents."""
        stream, inputs = self.embed(latents, timestep, context)
        for block in self.blocks:
            stream = block(stream, inputs.t_mod, inputs.context, inputs.rope)
        return self.finish(stream, inputs)
