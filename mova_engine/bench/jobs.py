"""The jobs: parts of the model at a configuration's shapes, from one block's chain of norms to a training step."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mova_engine.adapters.lora import add_lora
from mova_engine.backend import get_backend
from mova_engine.bench.workloads import PreparedWork, Tensors, Workload, draw_parameters, remakable, with_parameters
from mova_engine.config.model import MovaConfig
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import LoopOptions, denoise
from mova_engine.inference.velocities import Conditions, Latents
from mova_engine.memory.checkpointing import layer_runner
from mova_engine.models.bridge import Bridge
from mova_engine.models.layers import Block, ResidualStream
from mova_engine.models.modality import Modality, modalities
from mova_engine.models.mova import Mova, dual_tower_forward
from mova_engine.models.rope import audio_rope, video_rope
from mova_engine.ops import REFERENCE, OpTable, bind
from mova_engine.predict.flops import Attention, forward_flops, operations, training_flops

_WIDE = torch.float32
LORA_TARGETS = ("q", "k", "v", "o", "ffn.0", "ffn.2")
# Of a denoising step.
GUIDANCE = Guidance("text")


class _Draw:
    """Draws named tensors from one generator."""

    def __init__(self, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> None:
        self.generator, self.device, self.dtype = generator, device, dtype

    def __call__(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, generator=self.generator, device=self.generator.device) * scale
        return x.to(self.device, dtype or self.dtype)


@remakable
def chain_job(rows: int, width: int, head_dim: int = 128, dtype: torch.dtype = torch.float32) -> Workload:
    """The operators on rows of one block, in its order, without the matrix products and attention between them.

    Previous gate + residual + norm1 + modulate; RMSNorm + RoPE of q and of k; gate + residual + norm3; RMSNorm of the
    text attention's q; residual + norm2 + modulate. What a product would deliver is an input here. 18 passes forward,
    25 backward.
    """
    if width % head_dim:
        raise MovaError(f"the chain's width {width} is not a multiple of the head dim {head_dim}")
    activations = ("x", "y0", "q", "k", "y1", "c", "y2")
    vectors = ("gate0", "shift1", "scale1", "gate1", "shift2", "scale2")
    weights = ("norm_q", "norm_k", "norm3", "bias3", "norm_c")

    def draw(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
        make = _Draw(generator, device, dtype)
        tensors = {name: make(1, rows, width) for name in activations}
        tensors |= {name: make(1, width, scale=0.5, dtype=_WIDE) for name in vectors}
        tensors |= {name: make(width, scale=0.2) + (name != "bias3") for name in weights}
        angles = make(rows, head_dim // 2, scale=10.0, dtype=torch.float32)
        return tensors | {"cos": angles.cos(), "sin": angles.sin()}

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        inputs = {name: x for name, x in tensors.items() if name not in ("cos", "sin")}
        rope, eps = (tensors["cos"], tensors["sin"]), 1e-6

        def forward(t: Tensors) -> tuple[Tensor, ...]:
            x, h1 = ops.gate_residual_norm_modulate(t["x"], t["y0"], t["gate0"], t["shift1"], t["scale1"], eps=eps)
            q = ops.rms_norm_rope(t["q"], t["norm_q"], *rope, eps=eps, interleaved=True)
            k = ops.rms_norm_rope(t["k"], t["norm_k"], *rope, eps=eps, interleaved=True)
            x, h2 = ops.gate_residual_norm(x, t["y1"], t["gate1"], t["norm3"], t["bias3"], eps=eps)
            c = ops.rms_norm(t["c"], t["norm_c"], eps=eps)
            x, h3 = ops.gate_residual_norm_modulate(x, t["y2"], None, t["shift2"], t["scale2"], eps=eps)
            return x, h1, q, k, h2, c, h3

        return PreparedWork(forward, inputs)

    # Backward: two gated norms 6 each, one without a gate 4, three RMSNorms 3 each.
    moved = (18 + 25) * rows * width * dtype.itemsize
    return Workload("chain", draw, work, moved=moved, facts={"rows": rows, "width": width})


@remakable
def block_job(config: MovaConfig, tower: str) -> Workload:
    """One block of the "video" or the "audio" tower in the middle of a stack: an update pending before and after it."""
    sizes = config.video if tower == "video" else config.audio
    tokens = config.clip.video_tokens if tower == "video" else config.clip.audio_tokens

    def module(ops: OpTable) -> Block:
        role = ops.video_attention if tower == "video" else ops.attention
        return Block(sizes, ops, role, device="meta")

    def draw(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
        make = _Draw(generator, device, dtype)
        tensors = draw_parameters(module(_no_choice()), generator, device, dtype)
        tensors |= {"in.x": make(1, tokens, sizes.dim), "in.y": make(1, tokens, sizes.dim)}
        tensors["in.context"] = make(1, config.text_tokens, sizes.dim)
        tensors["in.gate"] = make(1, sizes.dim, scale=0.5, dtype=_WIDE)
        tensors["in.t_mod"] = make(1, 6, sizes.dim, scale=0.5, dtype=_WIDE)
        return tensors

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        block = module(ops)
        parameters = with_parameters(block, tensors)
        grid, device = _grid(config), tensors["in.x"].device
        rope = (
            video_rope(grid, sizes.head_dim, device) if tower == "video" else audio_rope(tokens, sizes.head_dim, device)
        )

        def forward(t: Tensors) -> tuple[Tensor, ...]:
            stream = ResidualStream(t["in.x"], t["in.y"], t["in.gate"])
            return tuple(block(stream, t["in.t_mod"], t["in.context"], rope))

        return PreparedWork(forward, _inputs(tensors), parameters)

    one = replace(sizes, num_layers=1)
    layers = {"video": one} if tower == "video" else {"audio": one}
    model, hardware = _layer_flops(with_towers(config, **layers), f"{tower}_dit")
    name = "block" if tower == "video" else "audio-block"
    return Workload(name, draw, work, model, hardware, facts=_facts(config, tower))


@remakable
def bridge_job(config: MovaConfig) -> Workload:
    """One layer of the bridge, both directions, with an update pending on both streams."""
    only = replace(config.bridge, interaction_strategy="custom", interaction_layers=(0,))
    clip = config.clip
    shapes = {
        "video": (1, clip.video_tokens, config.video.dim),
        "audio": (1, clip.audio_tokens, config.audio.dim),
    }

    def draw(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
        make = _Draw(generator, device, dtype)
        tensors = draw_parameters(Bridge(only, _no_choice(), device="meta"), generator, device, dtype)
        for name, shape in shapes.items():
            tensors |= {f"in.{name}.x": make(*shape), f"in.{name}.y": make(*shape)}
            tensors[f"in.{name}.gate"] = make(1, shape[-1], scale=0.5, dtype=_WIDE)
        return tensors

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        bridge = Bridge(only, ops, device="meta")
        parameters = with_parameters(bridge, tensors)
        grid = _grid(config)
        rope = bridge.rope(grid, clip.audio_tokens, clip.fps, tensors["in.video.x"].device)

        def forward(t: Tensors) -> tuple[Tensor, ...]:
            streams = (ResidualStream(*(t[f"in.{name}.{part}"] for part in ("x", "y", "gate"))) for name in shapes)
            return tuple(x for stream in bridge(0, *streams, rope, grid) for x in stream if x is not None)

        return PreparedWork(forward, _inputs(tensors), parameters)

    model, hardware = _layer_flops(replace(config, bridge=only), "dual_tower_bridge")
    return Workload("bridge", draw, work, model, hardware, facts=_facts(config, "video") | _facts(config, "audio"))


def stack_config(config: MovaConfig) -> MovaConfig:
    """The configuration with a single thin audio layer beside its video blocks."""
    thin = replace(config.audio, dim=128, ffn_dim=128, num_heads=1, num_layers=1)
    head_dim = math.gcd(128, config.bridge.head_dim)
    sizes = {"visual_layers": config.video.num_layers, "audio_layers": 1, "audio_hidden_dim": 128}
    return replace(config, audio=thin, bridge=replace(config.bridge, head_dim=head_dim, **sizes))


@remakable
def stack_job(
    config: MovaConfig, checkpointing: str, *, offload: bool = False, offload_saved: bool = False
) -> Workload:
    """Forward and backward of all video blocks of the configuration, each with its own weights, without the bridge.

    offload, offload_saved: as of `layer_runner`.

    All blocks copy their weights' gradients to the same buffer, so that the gradients of all blocks need not fit the
    device; those of the first block remain in it. Runs the model's own forward, with a single small audio layer.
    """
    config = stack_config(config)
    job = step_job(config, checkpointing, bridge=False, offload=offload, offload_saved=offload_saved)

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        inner = job.work(ops, tensors)
        blocks: dict[str, dict[str, Tensor]] = {}
        for name, p in inner.parameters.items():
            if name.startswith("video_dit.blocks."):
                index, _, rest = name.removeprefix("video_dit.blocks.").partition(".")
                blocks.setdefault(index, {})[rest] = p
        buffer = {name: torch.empty_like(p) for name, p in blocks["0"].items()}

        def into_buffer(name: str) -> Callable[[Tensor], None]:
            def hook(p: Tensor) -> None:
                gradient, p.grad = p.grad, None
                assert gradient is not None, "torch calls the hook after it has accumulated a gradient"
                buffer[name].copy_(gradient)

            return hook

        for parameters in blocks.values():
            for name, p in parameters.items():
                p.register_post_accumulate_grad_hook(into_buffer(name))
        first = {f"video_dit.blocks.0.{name}": x for name, x in buffer.items()}
        return replace(inner, collected=lambda: first)

    # The thin audio layer is not the model's.
    own = {name: value for name, value in job.facts.items() if not name.startswith("audio_")}
    facts = own | {"blocks": config.video.num_layers}
    return replace(job, name="stack", work=work, facts=facts)


@remakable
def step_job(
    config: MovaConfig,
    checkpointing: str = "none",
    *,
    batch: int = 1,
    lora_rank: int | None = None,
    bridge: bool = True,
    offload: bool = False,
    offload_saved: bool = False,
) -> Workload:
    """Forward and backward of a training step on random latents; with `lora_rank` only adapters are trained. offload,
    offload_saved: as of `layer_runner`.
    """
    config = replace(config, experts=1)

    def module(ops: OpTable) -> Mova:
        mova = Mova(config, ops, device="meta")
        if lora_rank:
            mova.requires_grad_(False)
            add_lora(mova, LORA_TARGETS, lora_rank, alpha=float(lora_rank))
        return mova

    def draw(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
        return draw_parameters(module(_no_choice()), generator, device, dtype) | _latents(
            config, _Draw(generator, device, dtype), batch, config.video.in_dim
        )

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        mova = module(ops)
        parameters = with_parameters(mova, tensors)
        if not bridge:
            parameters = {name: p for name, p in parameters.items() if not name.startswith("dual_tower_bridge.")}
        inputs = step_modalities(tensors)
        towers = (mova.video_dit, mova.audio_dit, mova.dual_tower_bridge if bridge else None)

        runner = layer_runner(checkpointing, offload, offload_saved=offload_saved)

        def forward(_: Tensors) -> tuple[Tensor, ...]:
            return dual_tower_forward(*towers, *inputs, fps=config.clip.fps, runner=runner)

        return PreparedWork(forward, parameters={name: p for name, p in parameters.items() if p.requires_grad})

    components = ("video_dit", "audio_dit") + (("dual_tower_bridge",) if bridge else ())
    counted = training_flops(config, components=components, lora_rank=lora_rank)
    hardware = {"none": counted.hardware, "selective": counted.hardware_selective, "full": counted.hardware_full}
    facts = _facts(config, "video") | _facts(config, "audio")
    facts |= {"batch": batch, "checkpointing": checkpointing, "lora_rank": lora_rank}
    return Workload("step", draw, work, counted.model * batch, hardware[checkpointing] * batch, facts=facts)


@remakable
def denoise_job(config: MovaConfig) -> Workload:
    """One denoising step with text guidance: two evaluations in one forward, no gradient."""
    config = replace(config, experts=1)

    def draw(generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
        tensors = draw_parameters(Mova(config, _no_choice(), device="meta"), generator, device, dtype)
        return tensors | denoise_inputs(config, generator, device, dtype)

    def work(ops: OpTable, tensors: Tensors) -> PreparedWork:
        mova = Mova(config, ops, device="meta")
        with_parameters(mova, tensors)
        return PreparedWork(lambda _: denoise_once(mova, tensors))

    model = GUIDANCE.evaluations * forward_flops(config).total
    facts = _facts(config, "video") | _facts(config, "audio") | {"evaluations": GUIDANCE.evaluations}
    return Workload("denoise", draw, work, model, model, facts=facts)


def denoise_inputs(config: MovaConfig, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Random noise and conditions of a denoising step, by the names that `denoise_once` reads."""
    make, wide = _Draw(generator, device, dtype), _Draw(generator, device, _WIDE)
    tensors = _latents(config, wide, 1, config.video.out_dim)
    tensors["in.condition"] = wide(1, config.video.in_dim - config.video.out_dim, *config.clip.latent_shape)
    tensors["in.text"], tensors["in.empty"] = (make(*tensors["in.text"].shape) for _ in range(2))
    return tensors


def denoise_once(mova: Mova, tensors: Tensors) -> tuple[Tensor, ...]:
    """One denoising step of `GUIDANCE.evaluations` evaluations: the latents after it."""
    conditions = Conditions(tensors["in.condition"], tensors["in.text"], tensors["in.empty"])
    noise, fps = Latents(tensors["in.video"], tensors["in.audio"]), mova.config.clip.fps
    steps = Schedule().inference(1)
    return tuple(denoise(mova, conditions, noise, steps, GUIDANCE, Prediction(), fps=fps, options=LoopOptions()))


def step_inputs(config: MovaConfig, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensors:
    """Random latents and text features of a training step of one clip."""
    return _latents(config, _Draw(generator, device, dtype), 1, config.video.in_dim)


def step_modalities(tensors: Tensors) -> tuple[Modality, Modality]:
    """Video and audio of a training step at the timesteps that all steps are measured at."""
    video = tensors["in.video"]
    times = [torch.full((len(video),), t, device=video.device) for t in (950.0, 500.0)]
    return modalities(*(tensors[f"in.{name}"] for name in ("video", "audio", "text")), *times)


@cache
def _no_choice() -> OpTable:
    """A table for modules of which only the parameters are wanted."""
    return bind(get_backend("cpu"), REFERENCE)


def _inputs(tensors: Tensors) -> Tensors:
    return {name: x for name, x in tensors.items() if name.startswith("in.")}


def _latents(config: MovaConfig, make: _Draw, batch: int, channels: int) -> Tensors:
    return {
        "in.video": make(batch, channels, *config.clip.latent_shape),
        "in.audio": make(batch, config.audio.in_dim, config.clip.audio_tokens),
        "in.text": make(batch, config.text_tokens, config.video.text_dim),
    }


def _grid(config: MovaConfig) -> tuple[int, int, int]:
    sizes = zip(config.clip.latent_shape, config.video.patch_size, strict=True)
    frames, rows, columns = (size // patch for size, patch in sizes)
    return frames, rows, columns


def _facts(config: MovaConfig, tower: str) -> dict:
    if tower == "video":
        return {"model": config.name, "video_tokens": config.clip.video_tokens, "video_dim": config.video.dim}
    return {"model": config.name, "audio_tokens": config.clip.audio_tokens, "audio_dim": config.audio.dim}


def with_towers(config: MovaConfig, **towers: Any) -> MovaConfig:
    """The configuration with other towers and a bridge that fits them."""
    video, audio = towers.get("video", config.video), towers.get("audio", config.audio)
    bridge = replace(config.bridge, visual_layers=video.num_layers, audio_layers=audio.num_layers)
    return replace(config, video=video, audio=audio, bridge=bridge)


def _layer_flops(config: MovaConfig, component: str) -> tuple[int, int]:
    """(model, hardware) FLOPs of forward and backward of the blocks of a component, all weights and inputs trained."""
    parts = [op for op in operations(config, (component,)) if isinstance(op, Attention) or op.in_block]
    model = 3 * sum(op.flops for op in parts)
    return model, model + sum(op.flops // 2 for op in parts if isinstance(op, Attention))
