"""The bridge: cross-attention between the towers in both directions, aligned in time by rotary embedding (MOVA).

Layer i runs before block i of both towers, and both directions read the states from before it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from mova_engine.config.model import BridgeConfig
from mova_engine.errors import MovaError
from mova_engine.models.context_parallel import NO_CP, Sharding
from mova_engine.models.layers import (
    WHOLE,
    LayerOptions,
    Linear,
    NormOutput,
    NormParameters,
    ResidualStream,
    Rope,
    Trace,
    attend,
    project,
    scaled_normal,
)
from mova_engine.models.rope import RopeTables, Times, aligned_audio_rope, aligned_video_rope
from mova_engine.ops import OpTable
from mova_engine.ops.half_products import PlainLinear

# LayerNorm of the other tower's states and RMSNorm of q and k.
EPS = 1e-6
# LayerNorm of the pooled variant's adaptive norm.
ADALN_EPS = 1e-5


class KeysValues(NamedTuple):
    """What an attention reads of the other tower: keys, normalised and rotated, and values, [b, n, d] each."""

    keys: Tensor
    values: Tensor


@dataclass
class VideoRecord:
    """What the audio reads of the video in one forward: the keys and values of each bridge layer, of this process's own
    tokens. With it the audio tower can be run again without the video (`Mova.forward_audio`). grid: the video's tokens
    along (t, h, w). times: its places in time, see `Modality`.
    """

    grid: tuple[int, ...] = ()
    times: Times = None
    layers: dict[int, KeysValues] = field(default_factory=dict[int, KeysValues])

    def to(self, device: torch.device) -> "VideoRecord":
        """The same on a device."""
        there = {layer: KeysValues(*(x.to(device) for x in each)) for layer, each in self.layers.items()}
        return VideoRecord(self.grid, self.times, there)


class InnerAttention(nn.Module):
    """Cross-attention from `dim` to `other_dim`: q, k normalised over all heads, halves rotated where tables are
    given.
    """

    def __init__(
        self, dim: int, other_dim: int, head_dim: int, ops: OpTable, attention: Callable, **factory: Any
    ) -> None:
        """attention: the operator in the role that it has in this direction."""
        super().__init__()
        self.num_heads, self.ops, self.attention = dim // head_dim, ops, attention
        self.q, self.o = Linear(dim, dim, ops, **factory), Linear(dim, dim, ops, **factory)
        self.k, self.v = Linear(other_dim, dim, ops, **factory), Linear(other_dim, dim, ops, **factory)
        self.norm_q, self.norm_k = (NormParameters(dim, bias=False, **factory) for _ in range(2))

    def _normed(self, x: Tensor, norm: NormParameters, rope: Rope | None) -> Tensor:
        if rope is None:
            return self.ops.rms_norm(x, norm.weight, eps=EPS)
        return self.ops.rms_norm_rope(x, norm.weight, *rope, eps=EPS, interleaved=False)

    def forward(
        self,
        x: Tensor,
        y: NormOutput | KeysValues,
        rope_x: Rope | None,
        rope_y: Rope | None,
        trace: Trace | None = None,
        tokens: int | None = None,
        record: Callable[[KeysValues], None] | None = None,
    ) -> Tensor:
        """x [b, s, d], y of [b, n, other], or its keys and values from an earlier call -> [b, s, d]. tokens: see
        `LayerOptions`. record: receives the keys and values.
        """
        (q,) = project(self.ops, NormOutput(x), self.q)
        q = self._normed(q, self.norm_q, rope_x)
        if isinstance(y, KeysValues):
            k, v = y
        else:
            k, v = project(self.ops, y, self.k, self.v)
            k = self._normed(k, self.norm_k, rope_y)
        if record:
            record(KeysValues(k, v))
        if trace:
            trace("q_rope", q)
            trace("k_rope", k)
        heads = [t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v)]
        del q, k, v
        return self.o(attend(self.attention, heads, tokens).flatten(-2))


class FramePooling(nn.Module):
    """One vector per video frame: a learned probe attends to the frame's tokens, then LayerNorm.

    `attention` is a torch MultiheadAttention for its parameter names.
    """

    def __init__(self, dim: int, heads: int, **factory: Any) -> None:
        super().__init__()
        self.probe = scaled_normal(1, 1, dim, **factory)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True, **factory)
        self.layernorm = nn.LayerNorm(dim, eps=EPS, **factory)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x [b, frames * n, d] -> [b, frames, d]."""
        b = x.shape[0]
        per_frame = x.unflatten(1, (frames, -1)).flatten(0, 1)
        probe = self.probe.to(x.dtype).expand(per_frame.shape[0], -1, -1)
        pooled, _ = self.attention(probe, per_frame, per_frame, need_weights=False)
        return self.layernorm(pooled.squeeze(1)).unflatten(0, (b, frames))


class AdaLayerNorm(nn.Module):
    """LayerNorm modulated per token: `layer_norm(x) * (1 + scale) + shift` with (scale, shift) =
    linear(silu(condition)).
    """

    def __init__(self, dim: int, condition_dim: int, **factory: Any) -> None:
        super().__init__()
        self.linear = PlainLinear(condition_dim, 2 * dim, **factory)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x [b, s, d], condition [b, s, c] -> [b, s, d]."""
        scale, shift = self.linear(F.silu(condition)).chunk(2, -1)
        return F.layer_norm(x, x.shape[-1:], eps=ADALN_EPS) * (1 + scale) + shift


class Conditioner(nn.Module):
    """One direction of a bridge layer: cross-attention from x (queries) to the other tower's y (keys, values)."""

    def __init__(
        self,
        dim: int,
        other_dim: int,
        config: BridgeConfig,
        ops: OpTable,
        attention: Callable,
        pooled: bool = False,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.y_norm = NormParameters(other_dim, bias=True, **factory)
        self.inner = InnerAttention(dim, other_dim, config.head_dim, ops, attention, **factory)
        self.per_frame_pooling = FramePooling(other_dim, dim // config.head_dim, **factory) if pooled else None
        self.adaln = AdaLayerNorm(dim, other_dim, **factory) if pooled else None


class Bridge(nn.Module):
    """All layers of the bridge. Parameters exist for the bridged layers only, keyed by layer index."""

    def __init__(
        self,
        config: BridgeConfig,
        ops: OpTable,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config, self.ops, self.tables = config, ops, RopeTables()
        factory = {"device": device, "dtype": dtype}
        self.condition_scale = nn.Parameter(torch.ones(1, **factory)) if config.trainable_condition_scale else None
        video, audio = config.visual_hidden_dim, config.audio_hidden_dim
        # A layer's name among the parameters, made here: nothing is put together on the way of a forward.
        self.names = {i: str(i) for i in config.layers}
        self.audio_to_video_conditioners = nn.ModuleDict(
            {name: Conditioner(video, audio, config, ops, ops.attention, **factory) for name in self.names.values()}
        )
        self.video_to_audio_conditioners = nn.ModuleDict(
            {
                name: Conditioner(
                    audio, video, config, ops, ops.video_to_audio_attention, config.pooled_adaln, **factory
                )
                for name in self.names.values()
            }
        )

    def rope(
        self,
        grid: tuple[int, ...],
        audio_tokens: int,
        fps: float,
        device: torch.device,
        sharding: Sharding = NO_CP,
        times: tuple[Times, Times] = (None, None),
    ) -> tuple[Rope, Rope] | None:
        """(video, audio) rotary tables on the common time axis, the video's of the sharding's own tokens; None without
        cross RoPE. times: both modalities' places in time, see `Modality`.
        """
        config = self.config
        if not config.apply_cross_rope:
            return None
        bias = config.apply_first_frame_bias_in_rope
        # Four pictures a latent frame: with fps / 4 positions a second, frame i lands on position i.
        audio_fps = config.audio_fps if config.aligned else fps / 4
        cos, sin = self.tables.get(aligned_video_rope, grid, fps, audio_fps, bias, config.head_dim, device, times[0])
        video = sharding.shard(cos, 0), sharding.shard(sin, 0)
        return video, self.tables.get(aligned_audio_rope, audio_tokens, config.head_dim, device, times[1])

    def forward(
        self,
        layer: int,
        video: ResidualStream,
        audio: ResidualStream,
        rope: tuple[Rope, Rope] | None,
        grid: tuple[int, int, int],
        scale: tuple[float, float] = (1.0, 1.0),
        trace: Trace | None = None,
        options: LayerOptions = WHOLE,
        record: VideoRecord | None = None,
    ) -> tuple[ResidualStream, ResidualStream]:
        """Layer `layer` on both streams; scale = (audio to video, video to audio). Returns streams with pending
        updates. record: takes what the audio reads.
        """
        name = self.names[layer]
        # A ModuleDict does not say what it holds.
        to_video: Any = self.audio_to_video_conditioners[name]
        to_audio: Any = self.video_to_audio_conditioners[name]
        rope_v, rope_a = rope or (None, None)
        # Each norm belongs to the *other* direction's conditioner: it normalises what that one reads.
        x_v, normed_v = video.add_norm(self.ops, to_audio.y_norm, EPS, options)
        x_a, normed_a = audio.add_norm(self.ops, to_video.y_norm, EPS, options)
        scoped = (
            (lambda prefix: None) if trace is None else (lambda prefix: lambda name, x: trace(f"{prefix}_{name}", x))
        )
        update_v = to_video.inner(x_v, normed_a, rope_v, rope_a, scoped("a2v"))
        query_a = x_a
        if to_audio.per_frame_pooling is not None:
            # The video's frames drive the query's norm; keys and values remain the video's tokens.
            query_a = self._pooled_query(to_audio, x_a, x_v, grid[0], trace)
        keep = None if record is None else partial(record.layers.__setitem__, layer)
        update_a = to_audio.inner(query_a, normed_v, rope_a, rope_v, scoped("v2a"), options.tokens, keep)
        if trace:
            trace("a2v_features", update_v)
            trace("v2a_features", update_a)
        return (
            ResidualStream(x_v, update_v, self._gate(x_v, scale[0])),
            ResidualStream(x_a, update_a, self._gate(x_a, scale[1])),
        )

    def forward_audio(
        self,
        layer: int,
        audio: ResidualStream,
        rope: Rope | None,
        record: VideoRecord,
        scale: float = 1.0,
        options: LayerOptions = WHOLE,
    ) -> ResidualStream:
        """The audio's half of `forward` on what an earlier one recorded: the same values, where the video is the same.

        rope: the audio's. scale: of video to audio. Raises MovaError for the pooled variant, whose audio also reads
        the video's states.
        """
        name = self.names[layer]
        to_video: Any = self.audio_to_video_conditioners[name]
        to_audio: Any = self.video_to_audio_conditioners[name]
        if to_audio.per_frame_pooling is not None:
            raise MovaError("the bridge's pooled variant reads the video at every step: audio cannot be run alone")
        # Rounded as `forward` rounds it: by the same operator, whose norm nobody reads here.
        x, _ = audio.add_norm(self.ops, to_video.y_norm, EPS, options)
        update = to_audio.inner(x, record.layers[layer], rope, None, None, options.tokens)
        return ResidualStream(x, update, self._gate(x, scale))

    def _gate(self, x: Tensor, scale: float) -> Tensor | None:
        """The factor of a direction's update, [b, d] float32; None for one."""
        if self.condition_scale is None and scale == 1.0:
            return None
        factor = torch.full((1,), scale, device=x.device)
        if self.condition_scale is not None:
            factor = factor * self.condition_scale.float()
        return factor.expand(x.shape[0], x.shape[-1])

    @staticmethod
    def _pooled_query(conditioner: Any, x_a: Tensor, x_v: Tensor, frames: int, trace: Trace | None) -> Tensor:
        pooled = conditioner.per_frame_pooling(x_v, frames)
        frames_at_tokens = F.interpolate(pooled.transpose(1, 2), size=x_a.shape[1], mode="linear").transpose(1, 2)
        query = conditioner.adaln(x_a, frames_at_tokens)
        if trace:
            trace("pooled", pooled)
            trace("adaln_out", query)
        return query
