"""`step`: forward and backward of a model's training step on random latents, and where the time goes by operator."""

import argparse
from collections import defaultdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from mova_engine.backend import Backend
from mova_engine.bench.timing import measure
from mova_engine.config import PRESETS, get_preset
from mova_engine.flops import training_flops
from mova_engine.models.dual_tower import dual_tower_forward
from mova_engine.models.mova import Mova
from mova_engine.ops import bind

# torch's own operations, by what they are for; everything else in a step is small and many.
_GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product",),
    "GELU": ("aten::gelu",),
    "layer norm": ("aten::native_layer_norm",),
}
_OTHER = "norms, rotary embedding, modulation, gates, casts and copies"
# Namespaces of operations that compute: torch's own and the kernels'.
_COMPUTING = ("aten::", "mova_kernels::", "mova_triton::")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of this suite."""
    parser.add_argument("--model", default="bench-mid", help=f"one of {', '.join(PRESETS)} (default bench-mid)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30.0, help="time spent on the figure (default 30)")
    parser.add_argument("--checkpointing", default="none", help="none or full (default none)")


def run(args: argparse.Namespace, backend: Backend, dtype: torch.dtype) -> list[dict[str, Any]]:
    """One row: seconds, FLOP/s by model FLOPs, MFU where the device's peak is known, and the breakdown."""
    config = get_preset(args.model)
    ops = bind(backend)
    model = Mova(config, ops, device=backend.device(), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    inputs = _inputs(model, args.batch, generator, backend, dtype)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        video, audio = dual_tower_forward(
            model.video_dit, model.audio_dit, model.dual_tower_bridge, *inputs, checkpointing=args.checkpointing
        )
        (video.float().square().mean() + audio.float().square().mean()).backward()

    backend.reset_peak_memory()
    timing = measure(step, backend, seconds=args.seconds, least=5)
    flops = training_flops(config).model * args.batch
    row = {
        "model": config.name,
        "batch": args.batch,
        "dtype": str(dtype).removeprefix("torch."),
        "checkpointing": args.checkpointing,
        "step_s": timing.median,
        "fastest_s": timing.fastest,
        "slowest_s": timing.slowest,
        "runs": timing.runs,
        "model_tflop": flops / 1e12,
        "flop_per_s": flops / timing.median,
        "mfu": flops / timing.median / peak if (peak := backend.peak_flops(dtype)) else None,
        "peak_memory_bytes": backend.peak_memory(),
        "operators": {choice.operator: choice.implementation for choice in ops.choices},
        "breakdown": _breakdown(step, backend),
    }
    print(f"{row['model']} batch {row['batch']} {row['dtype']}: {timing.median:.3f} s a step", end=" ")
    print(f"({timing.fastest:.3f} to {timing.slowest:.3f}, {timing.runs} runs), {row['flop_per_s'] / 1e9:.0f} GFLOP/s")
    for name, share in row["breakdown"].items():
        print(f"  {share:6.1%}  {name}")
    return [row]


def _inputs(model: Mova, batch: int, generator: torch.Generator, backend: Backend, dtype: torch.dtype) -> list:
    config = model.config
    shapes = (
        (batch, config.video.in_dim, *config.clip.latent_shape),
        (batch, config.audio.in_dim, config.clip.audio_tokens),
        (batch, config.text_tokens, config.video.text_dim),
    )
    tensors = [torch.randn(shape, generator=generator).to(backend.device(), dtype) for shape in shapes]
    times = [torch.full((batch,), t, device=backend.device()) for t in (950.0, 500.0)]
    return [*tensors, *times]


def _breakdown(step, backend: Backend) -> dict[str, float]:
    """Share of the operations' own time by group, over three steps, largest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if backend.name != "cpu" else [])
    with profile(activities=activities) as trace, record_function("step"):
        for _ in range(3):
            step()
        backend.synchronize()
    totals: dict[str, float] = defaultdict(float)
    for event in trace.key_averages():
        if not event.key.startswith(_COMPUTING):
            continue
        own = event.self_cpu_time_total if backend.name == "cpu" else event.self_device_time_total
        group = next((g for g, names in _GROUPS.items() if event.key.startswith(names)), _OTHER)
        totals[group] += own
    whole = sum(totals.values())
    return {name: own / whole for name, own in sorted(totals.items(), key=lambda item: -item[1])}
