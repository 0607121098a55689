"""A tower: patches in, blocks, patches out. The video and audio DiT differ in patches and rotary table only."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.backend.host_copies import to_device
from mova_engine.config.model import TowerConfig
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.layers import Block, Head, ResidualStream, Rope, sinusoid, time_mlp
from mova_engine.models.modality import Modality, group_columns
from mova_engine.models.rope import RopeTables, Times
from mova_engine.ops import OpTable
from mova_engine.ops.half_products import PlainLinear, linear


@dataclass(frozen=True)
class TowerInputs:
    """What a tower's blocks and head need beside the residual stream.

    t [b * g, d] and t_mod [b * g, 6, d] float32: a row for each of the g equal groups of consecutive tokens into which
    each clip is cut, one where its tokens share a timestep. context [b, n, d]; grid: tokens along each patch axis, of
    the whole clip.
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
            PlainLinear(config.text_dim, dim, **factory), nn.GELU(approximate="tanh"), PlainLinear(dim, dim, **factory)
        )
        self.time_embedding = nn.Sequential(
            PlainLinear(config.freq_dim, dim, **factory), nn.SiLU(), PlainLinear(dim, dim, **factory)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), PlainLinear(dim, 6 * dim, **factory))
        self.blocks = nn.ModuleList(Block(config, ops, self_attention, **factory) for _ in range(config.num_layers))
        self.head = Head(config, patch_volume, ops, **factory)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the tower computes, and activations flow."""
        # Of a parameter that `embed` uses: sharded ones have it only while they are gathered.
        return self.patch_embedding.weight.dtype

    def embed_time(
        self, modality: Modality, grid: tuple[int, ...], sharding: Sharding = NO_CP
    ) -> tuple[Tensor, Tensor]:
        """t [b * g, d] and t_mod [b * g, 6, d], float32, of the sharding's own tokens: see `TowerInputs`."""
        table, index = modality.noise_levels()
        device = next(self.time_embedding.parameters()).device
        frequencies = to_device(sinusoid(table.flatten(), self.config.freq_dim), device, torch.float32)
        t = time_mlp(self.time_embedding, frequencies)
        t_mod = time_mlp(self.time_projection, t).unflatten(1, (6, -1))
        if index is None:
            return t.expand(modality.batch, -1), t_mod.expand(modality.batch, -1, -1)
        columns = to_device(torch.tensor(group_columns(index, math.prod(grid[1:]), sharding)), device)

        def per_group(x: Tensor) -> Tensor:
            return x.unflatten(0, table.shape)[:, columns].expand(modality.batch, *[-1] * x.ndim).flatten(0, 1)

        return per_group(t), per_group(t_mod)

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

    def rope(self, grid: tuple[int, ...], device: torch.device, times: Times = None) -> Rope:
        """Rotary tables of a grid. times: of its positions in time, see `Modality`."""
        raise NotImplementedError

    def embed(self, modality: Modality, sharding: Sharding = NO_CP) -> tuple[ResidualStream, TowerInputs]:
        """Everything before the first block; the stream holds the sharding's own tokens."""
        patches, grid = self.patchify(modality.latents.to(self.dtype))
        modality.check(grid[0])
        # The convolution's stride is its kernel: a matrix product over patches, and much faster as one on CPUs.
        embedding = self.patch_embedding
        tokens = linear(sharding.shard(patches), embedding.weight.flatten(1), embedding.bias)
        t, t_mod = self.embed_time(modality, grid, sharding)
        cos, sin = self.rope(grid, modality.latents.device, modality.times)
        rope = sharding.shard(cos, 0), sharding.shard(sin, 0)
        return ResidualStream(tokens), TowerInputs(t, t_mod, self.embed_text(modality.text), rope, grid, sharding)

    def finish(self, stream: ResidualStream, inputs: TowerInputs) -> Tensor:
        """Everything after the last block: the tower's output in latent shape, of own tokens where it is sharded."""
        return self.unpatchify(inputs.sharding.unshard(self.head(stream, inputs.t), inputs.tokens), inputs.grid)

    def forward(self, modality: Modality) -> Tensor:
        """The tower alone -> output latents."""
        stream, inputs = self.embed(modality)
        for block in self.blocks:
            stream = block(stream, inputs.t_mod, inputs.context, inputs.rope)
        return self.finish(stream, inputs)
