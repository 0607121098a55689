"""The suites that compare the engine with the baseline: which jobs, at which shapes, with which options."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.bench import encoding, operators
from mova_engine.bench.breakdown import time_by_group
from mova_engine.bench.candidates import add_side_arguments, make_sides, measure_job, scaled_down
from mova_engine.bench.jobs import block_job, bridge_job, chain_job, denoise_job, stack_job, step_job, with_towers
from mova_engine.bench.workloads import SEED, Workload
from mova_engine.config.memory import CHECKPOINTING
from mova_engine.config.model import PRESETS, ClipConfig, MovaConfig, get_preset
from mova_engine.errors import MovaError

Rows = list[dict[str, Any]]
# What a device is measured with by default, and what takes its place on a CPU.
_MODEL, _CPU_MODEL = "mova-360p", "bench-mid"
_CHAINS = [(43120, 5120), (10780, 5120), (176400, 5120)]
_CPU_CHAINS = [(1280, 768), (8192, 1536)]
_CPU_WHY = "the device is a CPU"


@dataclass(frozen=True)
class Suite:
    """A subcommand: what it measures (for --help), its own options, and what makes its rows."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Backend, torch.dtype], Rows]


def small_config(config: MovaConfig) -> MovaConfig:
    """The same widths with three layers and a few tokens: what the references can check in float64 anywhere."""
    layers = min(3, config.video.num_layers), min(2, config.audio.num_layers)
    video, audio = (replace(t, num_layers=n) for t, n in zip((config.video, config.audio), layers, strict=True))
    clip = ClipConfig(frames=5, height=64, width=64, fps=config.clip.fps)
    return replace(with_towers(config, video=video, audio=audio), clip=clip, text_tokens=min(8, config.text_tokens))


def smaller_config(config: MovaConfig, layers: bool) -> MovaConfig | None:
    """A configuration of about half the memory: fewer `layers` where they count, then a shorter clip; or None."""
    video, audio, frames = config.video.num_layers, config.audio.num_layers, config.clip.frames
    if layers and video > 1:
        halves = {"video": replace(config.video, num_layers=video // 2)}
        halves["audio"] = replace(config.audio, num_layers=max(1, audio // 2))
        return with_towers(config, **halves)
    if frames > 1:
        return replace(config, clip=replace(config.clip, frames=(frames - 1) // 8 * 4 + 1))
    return None


def _sizes(config: MovaConfig) -> dict[str, Any]:
    layers = {"video_layers": config.video.num_layers, "audio_layers": config.audio.num_layers}
    return {"model": config.name, **layers, "video_tokens": config.clip.video_tokens}


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(PRESETS)
    parser.add_argument("--model", help=f"one of {known} (default {_MODEL}; on a CPU {_CPU_MODEL}, marked as scaled)")
    add_side_arguments(parser)


def _checkpointing_argument(parser: argparse.ArgumentParser, default: str) -> None:
    choices = " or ".join(CHECKPOINTING)
    parser.add_argument("--checkpointing", default=default, help=f"{choices} (default {default})")


def _stack_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _checkpointing_argument(parser, "selective")
    parser.add_argument("--blocks", type=int, help="how many (default: as many as the model has)")


def _step_arguments(parser: argparse.ArgumentParser) -> None:
    _model_arguments(parser)
    _checkpointing_argument(parser, "none")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--lora-rank", type=int, help="train adapters of this rank, the weights frozen")


def _chain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, help="tokens (default: MOVA's, on a CPU bench-mid's and a long audio's)")
    parser.add_argument("--width", type=int, help="channels, with --rows")
    add_side_arguments(parser)


def _run_model(
    make: Callable[[MovaConfig, argparse.Namespace], Workload],
    args: argparse.Namespace,
    backend: Backend,
    dtype: torch.dtype,
    *,
    training: bool = True,
    layers: bool = False,
    breakdown: bool = False,
) -> Rows:
    """One row of a job made from a configuration; `layers`: fewer of them are an answer to too little memory."""
    if getattr(args, "checkpointing", "none") not in CHECKPOINTING:
        raise MovaError(f"checkpointing must be one of {', '.join(CHECKPOINTING)}, got '{args.checkpointing}'")
    config = get_preset(args.model or (_CPU_MODEL if backend.name == "cpu" else _MODEL))
    sides = make_sides(args, backend, dtype, training=training)

    def run(config: MovaConfig) -> dict[str, Any]:
        job = make(config, args)
        row = measure_job(job, make(small_config(config), args), sides, args, backend)
        if breakdown:
            row["breakdown"] = _breakdown(job, sides[0], backend)
        return row

    row = scaled_down(run, config, partial(smaller_config, layers=layers), _sizes)
    if args.model is None and backend.name == "cpu":
        row["scaled"] = {"asked": {"model": _MODEL}, "measured": {"model": _CPU_MODEL}, "why": _CPU_WHY}
    return [row]


def _breakdown(job: Workload, engine: Any, backend: Backend) -> dict[str, float]:
    generator = torch.Generator(backend.device()).manual_seed(SEED)
    work = engine.work(job, job.draw(generator, backend.device(), engine.dtype), engine.dtype)
    shares = time_by_group(work.run, backend)
    for name, share in shares.items():
        print(f"  {share:6.1%}  {name}")
    return shares


def _run_chain(args: argparse.Namespace, backend: Backend, dtype: torch.dtype) -> Rows:
    if (args.rows is None) != (args.width is None):
        raise MovaError("--rows and --width come together")
    cpu = backend.name == "cpu"
    shapes = [(args.rows, args.width)] if args.rows else (_CPU_CHAINS if cpu else _CHAINS)
    sides = make_sides(args, backend, dtype)
    rows = []
    for tokens, width in shapes:
        small = chain_job(min(tokens, 33), width, dtype=dtype)
        run = partial(_chain_row, width, small, sides, args, backend, dtype)
        row = scaled_down(run, tokens, lambda n: n // 2 or None, lambda n: {"rows": n})
        if cpu and not args.rows:
            row["scaled"] = {"asked": {"rows": 43120, "width": 5120}, "measured": {"rows": tokens}, "why": _CPU_WHY}
        rows.append(row)
    return rows


def _chain_row(width: int, small: Workload, sides: list, args: argparse.Namespace, backend, dtype, tokens: int) -> dict:
    return measure_job(chain_job(tokens, width, dtype=dtype), small, sides, args, backend)


def _stack(config: MovaConfig, args: argparse.Namespace) -> Workload:
    blocks = min(args.blocks or config.video.num_layers, config.video.num_layers)
    video = replace(config.video, num_layers=blocks)
    return stack_job(with_towers(config, video=video), args.checkpointing)


def _step(config: MovaConfig, args: argparse.Namespace) -> Workload:
    return step_job(config, args.checkpointing, batch=args.batch, lora_rank=args.lora_rank)


def _suite(text: str, add_arguments: Callable, make: Callable, **options: Any) -> Suite:
    return Suite(text, add_arguments, lambda args, backend, dtype: _run_model(make, args, backend, dtype, **options))


SUITES: dict[str, Suite] = {
    "operators": Suite(
        "every implementation of every operator that the device can run", operators.add_arguments, operators.run
    ),
    "encode": Suite(
        "a training step of processes that share a clip, by who encodes", encoding.add_arguments, encoding.run
    ),
    "chain": Suite("the norms, rotations and gates of one block", _chain_arguments, _run_chain),
    "block": _suite("one video block", _model_arguments, lambda config, args: block_job(config, "video")),
    "audio-block": _suite("one audio block", _model_arguments, lambda config, args: block_job(config, "audio")),
    "bridge": _suite("one bridge layer, both directions", _model_arguments, lambda config, args: bridge_job(config)),
    "stack": _suite("all video blocks, gradients into one reused buffer", _stack_arguments, _stack, layers=True),
    "denoise": _suite(
        "one denoising step of two evaluations",
        _model_arguments,
        lambda config, args: denoise_job(config),
        training=False,
        layers=True,
    ),
    "step": _suite(
        "forward and backward of a training step, and where its time goes",
        _step_arguments,
        _step,
        layers=True,
        breakdown=True,
    ),
}
