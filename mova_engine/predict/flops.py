"""Parameters and FLOPs of every component, from a configuration alone. Standard library only.

Conventions: one multiply-add is 2 FLOPs; attention is bidirectional, 4*Nq*Nk*d forward, no causal halving; norms,
rotations and activations are not counted. Backward of a linear layer = dgrad + wgrad, each as large as its forward:

* wgrad only for trained weights;
* dgrad only where something trained lies upstream: never for the network's own inputs, for text and time features only
  when the embeddings themselves are trained, always for the towers' hidden states. A layer costs the same at every
  depth (the first bridge layer is counted like the others); a low-rank adapter costs three times its forward.

**Model FLOPs** (for MFU): attention backward = 2x its forward, nothing recomputed. **Hardware FLOPs** (for HFU):
attention backward = 2.5x (it recomputes the scores), plus the forward of what checkpointing recomputes, which is
everything inside blocks and bridge; "selective" keeps the outputs and log-sum-exp of video self-attention and
recomputes the rest.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from mova_engine.config.model import ACTIVE_COMPONENTS, BridgeConfig, MovaConfig, TowerConfig
from mova_engine.errors import MovaError, suggest

# The name of the video blocks' feed-forward among the parts.
VIDEO_FEED_FORWARD = "video FFN"


@dataclass(frozen=True)
class MatrixProduct:
    """`layers` projections of `rows` tokens from `k` to `n` features.

    source: where its input comes from: the network's "input", a text or time "condition", or a tower's "hidden" states.
    in_block: inside a block or bridge layer, hence recomputed under checkpointing and a LoRA target.
    """

    component: str
    part: str
    rows: int
    k: int
    n: int
    layers: int = 1
    source: str = "hidden"
    in_block: bool = True

    @property
    def flops(self) -> int:
        """Forward FLOPs."""
        return 2 * self.rows * self.k * self.n * self.layers

    def adapter_flops(self, rank: int | None) -> int:
        """Forward FLOPs of a low-rank adapter B(A(x)) beside it; 0 outside blocks and without a rank."""
        return 2 * self.rows * (rank or 0) * (self.k + self.n) * self.layers * self.in_block


@dataclass(frozen=True)
class Attention:
    """`layers` attentions of `nq` queries over `nk` keys, all heads together `width` features.

    kept: its output is saved under selective checkpointing.
    """

    component: str
    part: str
    nq: int
    nk: int
    width: int
    layers: int = 1
    kept: bool = False

    @property
    def flops(self) -> int:
        """Forward FLOPs."""
        return 4 * self.nq * self.nk * self.width * self.layers


@dataclass(frozen=True)
class ForwardFlops:
    """FLOPs of one forward pass over one clip, by part (a row of the table) and in all."""

    parts: dict[str, int]
    total: int


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of forward + backward over one clip.

    model: for MFU. hardware, hardware_selective, hardware_full: for HFU, by checkpointing (none, selective, full).
    """

    model: int
    hardware: int
    hardware_selective: int
    hardware_full: int


def operations(
    config: MovaConfig, components: Iterable[str] = ACTIVE_COMPONENTS
) -> tuple[MatrixProduct | Attention, ...]:
    """Every matrix product of one forward pass over one clip; one expert is active at a time.

    components: which of `ACTIVE_COMPONENTS` run: ("audio_dit",) is audio pre-training; without "dual_tower_bridge" it
    is an evaluation without bridge. Raises MovaError for an unknown one.
    """
    chosen = tuple(components)
    for name in chosen:
        if name not in ACTIVE_COMPONENTS:
            known = f"{suggest(name, ACTIVE_COMPONENTS)} Known: {', '.join(ACTIVE_COMPONENTS)}"
            raise MovaError(f"unknown component '{name}'.{known}")
    ops: list[MatrixProduct | Attention] = []
    if "video_dit" in chosen:
        ops += _video(config)
    if "dual_tower_bridge" in chosen:
        ops += _bridge(config)
    if "audio_dit" in chosen:
        ops += _audio(config)
    return tuple(ops)


def forward_flops(config: MovaConfig, components: Iterable[str] = ACTIVE_COMPONENTS) -> ForwardFlops:
    """FLOPs of one forward pass (one denoising evaluation) over one clip."""
    parts: dict[str, int] = {}
    for op in operations(config, components):
        parts[op.part] = parts.get(op.part, 0) + op.flops
    return ForwardFlops(parts, sum(parts.values()))


def training_flops(
    config: MovaConfig,
    *,
    components: Iterable[str] = ACTIVE_COMPONENTS,
    trained: Iterable[str] | None = None,
    lora_rank: int | None = None,
) -> TrainingFlops:
    """FLOPs of one training step's forward + backward over one clip.

    trained: components whose weights are trained (default: all that run); the others still pass gradients through.
    lora_rank: train adapters of this rank on every linear layer inside blocks and bridge instead of the weights.
    """
    ops = operations(config, components)
    targets = {op.component for op in ops} if trained is None else set(trained)
    model = attention_extra = recomputed = kept = 0
    for op in ops:
        if isinstance(op, Attention):
            model += 3 * op.flops
            attention_extra += op.flops // 2
            recomputed += op.flops
            kept += op.flops * op.kept
            continue
        is_target = op.component in targets
        full = is_target and lora_rank is None
        adapter = op.adapter_flops(lora_rank) if is_target else 0
        dgrad = {"input": False, "condition": full, "hidden": True}[op.source]
        model += op.flops * (1 + dgrad + full) + 3 * adapter
        recomputed += (op.flops + adapter) * op.in_block
    hardware = model + attention_extra
    return TrainingFlops(model, hardware, hardware + recomputed - kept, hardware + recomputed)


def parameter_counts(config: MovaConfig) -> dict[str, Mapping[str, int]]:
    """Number of parameters by component and top-level module; `video_dit` is one expert."""
    return {
        "video_dit": _tower_parameters(config.video),
        "audio_dit": _tower_parameters(config.audio),
        "dual_tower_bridge": _bridge_parameters(config.bridge),
    }


def layer_parameters(groups: Mapping[str, int]) -> int:
    """Number of parameters of a component that are its layers', of its counts by module."""
    return sum(count for name, count in groups.items() if name == "blocks" or name.endswith("conditioners"))


def active_parameters(config: MovaConfig) -> int:
    """Parameters that take part in one forward pass: one expert, audio tower, bridge."""
    return sum(sum(groups.values()) for groups in parameter_counts(config).values())


def _embeddings(component: str, part: str, tower: TowerConfig, tokens: int, text: int) -> list[MatrixProduct]:
    """Patch, text and time embeddings and the head."""
    d, volume = tower.dim, math.prod(tower.patch_size)
    outside: dict[str, Any] = {"in_block": False}
    return [
        MatrixProduct(component, part, tokens, tower.in_dim * volume, d, source="input", **outside),
        MatrixProduct(component, part, text, tower.text_dim, d, source="input", **outside),
        MatrixProduct(component, part, text, d, d, source="condition", **outside),
        MatrixProduct(component, part, 1, tower.freq_dim, d, source="input", **outside),
        MatrixProduct(component, part, 1, d, d, source="condition", **outside),
        MatrixProduct(component, part, 1, d, 6 * d, source="condition", **outside),
        MatrixProduct(component, part, tokens, d, tower.out_dim * volume, **outside),
    ]


def _blocks(
    component: str, parts: dict[str, str], tower: TowerConfig, tokens: int, text: int, kept: bool
) -> list[MatrixProduct | Attention]:
    """All blocks of a tower: self-attention, text cross-attention, feed-forward. `parts` names each one's table row."""
    d, f, n = tower.dim, tower.ffn_dim, tower.num_layers
    return [
        Attention(component, parts["self"], tokens, tokens, d, n, kept=kept),
        MatrixProduct(component, parts["qkvo"], tokens, d, d, 4 * n),
        MatrixProduct(component, parts["ffn"], tokens, d, f, n),
        MatrixProduct(component, parts["ffn"], tokens, f, d, n),
        MatrixProduct(component, parts["cross"], tokens, d, d, 2 * n),
        MatrixProduct(component, parts["cross"], text, d, d, 2 * n, source="condition"),
        Attention(component, parts["cross"], tokens, text, d, n),
    ]


def _video(config: MovaConfig) -> list[MatrixProduct | Attention]:
    tokens, text = config.clip.video_tokens, config.text_tokens
    parts = {
        "self": "video self-attention",
        "qkvo": "video q,k,v,o",
        "ffn": VIDEO_FEED_FORWARD,
        "cross": "video text cross-attention",
    }
    blocks = _blocks("video_dit", parts, config.video, tokens, text, kept=True)
    return blocks + _embeddings("video_dit", "video embeddings, head", config.video, tokens, text)


def _audio(config: MovaConfig) -> list[MatrixProduct | Attention]:
    tokens, text = config.clip.audio_tokens, config.text_tokens
    parts: dict[str, str] = dict.fromkeys(("self", "qkvo", "ffn", "cross"), "audio tower")
    blocks = _blocks("audio_dit", parts, config.audio, tokens, text, kept=False)
    return blocks + _embeddings("audio_dit", "audio tower", config.audio, tokens, text)


def _bridge(config: MovaConfig) -> list[MatrixProduct | Attention]:
    name, n = "dual_tower_bridge", len(config.bridge.layers)
    v, a = config.bridge.visual_hidden_dim, config.bridge.audio_hidden_dim
    video, audio = config.clip.video_tokens, config.clip.audio_tokens
    ops: list[MatrixProduct | Attention] = [
        MatrixProduct(name, "bridge a2v projections", video, v, v, 2 * n),
        MatrixProduct(name, "bridge a2v projections", audio, a, v, 2 * n),
        Attention(name, "bridge a2v attention", video, audio, v, n),
        MatrixProduct(name, "bridge v2a projections", audio, a, a, 2 * n),
        MatrixProduct(name, "bridge v2a projections", video, v, a, 2 * n),
        Attention(name, "bridge v2a attention", audio, video, a, n),
    ]
    if config.bridge.pooled_adaln:
        part, frames = "bridge v2a pooling", config.clip.latent_shape[0]
        ops += [
            MatrixProduct(name, part, video, v, v, 2 * n),  # keys and values of all tokens
            MatrixProduct(name, part, frames, v, v, 2 * n),  # one probe's query and output per frame
            Attention(name, part, 1, video, v, n),  # each frame's probe over its own tokens
            MatrixProduct(name, part, audio, v, 2 * a, n),
        ]
    return ops


def _linear(k: int, n: int) -> int:
    return k * n + n


# Cached: the planner asks for them a hundred thousand times.
@cache
def _tower_parameters(tower: TowerConfig) -> Mapping[str, int]:
    d, f, volume = tower.dim, tower.ffn_dim, math.prod(tower.patch_size)
    attention = 4 * _linear(d, d) + 2 * d  # q, k, v, o; the two norms of q and k
    block = 2 * attention + 2 * d + _linear(d, f) + _linear(f, d) + 6 * d  # norm3 (affine), modulation
    return {
        "patch_embedding": _linear(tower.in_dim * volume, d),
        "text_embedding": _linear(tower.text_dim, d) + _linear(d, d),
        "time_embedding": _linear(tower.freq_dim, d) + _linear(d, d),
        "time_projection": _linear(d, 6 * d),
        "blocks": block * tower.num_layers,
        "head": _linear(d, tower.out_dim * volume) + 2 * d,
    }


@cache
def _bridge_parameters(bridge: BridgeConfig) -> Mapping[str, int]:
    def conditioner(d: int, kv: int) -> int:  # y_norm (affine), q, o, k, v, the two norms of q and k
        return 2 * kv + 2 * _linear(d, d) + 2 * _linear(kv, d) + 2 * d

    v, a, n = bridge.visual_hidden_dim, bridge.audio_hidden_dim, len(bridge.layers)
    # probe, in_proj, out_proj, layernorm, adaln
    pooling = (v + _linear(v, 3 * v) + _linear(v, v) + 2 * v + _linear(v, 2 * a)) * bridge.pooled_adaln
    counts = {
        "audio_to_video_conditioners": conditioner(v, a) * n,
        "video_to_audio_conditioners": (conditioner(a, v) + pooling) * n,
    }
    if bridge.trainable_condition_scale:
        counts["condition_scale"] = 1
    return counts
