"""The suites that compare the engine with the baseline: which jobs, at which shapes, with which options."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from mova_engine.backend import Backend, get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench import choose_operators, encoding, operators
from mova_engine.bench.breakdown import matrix_peak, time_by_group
from mova_engine.bench.candidates import make_sides, measure_job, scaled_down
from mova_engine.bench.jobs import block_job, bridge_job, chain_job, denoise_job, stack_job, step_job, with_towers
from mova_engine.bench.settings import (
    BenchConfig,
    ChainConfig,
    ComparedConfig,
    ModelConfig,
    OperatorsConfig,
    StackConfig,
    StepConfig,
)
from mova_engine.bench.smaller_sizes import small_config, smaller_config
from mova_engine.bench.workloads import SEED, Workload
from mova_engine.config.model import MovaConfig, get_preset
from mova_engine.files.results import check_result, write_result
from mova_engine.ops import DTYPES

Rows = list[dict[str, Any]]
# What makes the rows of a measurement, from its settings.
Measure = Callable[[Any, Backend, torch.dtype], Rows]
# What a device is measured with by default, and what takes its place on a CPU.
_MODEL, _CPU_MODEL = "mova-360p", "bench-mid"
_CHAINS = [(43120, 5120), (10780, 5120), (176400, 5120)]
_CPU_CHAINS = [(1280, 768), (8192, 1536)]
_CPU_WHY = "the device is a CPU"


def _sizes(config: MovaConfig) -> dict[str, Any]:
    layers = {"video_layers": config.video.num_layers, "audio_layers": config.audio.num_layers}
    return {"model": config.name, **layers, "video_tokens": config.clip.video_tokens}


def _times(settings: ComparedConfig) -> dict[str, Any]:
    return {"pairs": settings.pairs, "seconds": settings.seconds}


def _run_model(
    make: Callable[[MovaConfig, Any], Workload],
    settings: ModelConfig,
    backend: Backend,
    dtype: torch.dtype,
    *,
    training: bool = True,
    layers: bool = False,
    breakdown: bool = False,
) -> Rows:
    """One row of a job made from a configuration; `layers`: fewer of them are an answer to too little memory."""
    config = get_preset(settings.model or (_CPU_MODEL if backend.name == "cpu" else _MODEL))
    sides = make_sides(settings, backend, dtype, training=training)

    def run(config: MovaConfig) -> dict[str, Any]:
        job = make(config, settings)
        row = measure_job(job, make(small_config(config), settings), sides, backend, **_times(settings))
        if breakdown:
            row |= _breakdown(job, sides[0], backend)
        return row

    row = scaled_down(run, config, partial(smaller_config, layers=layers), _sizes)
    if settings.model is None and backend.name == "cpu":
        row["scaled"] = {"asked": {"model": _MODEL}, "measured": {"model": _CPU_MODEL}, "why": _CPU_WHY}
    return [row]


def _breakdown(job: Workload, engine: Any, backend: Backend) -> dict[str, Any]:
    """Shares of the time by group of operations; rates beside the machine's own in a product of matrices."""
    generator = torch.Generator(backend.device()).manual_seed(SEED)
    work = engine.work(job, job.draw(generator, backend.device(), engine.dtype), engine.dtype)
    parts, peak = time_by_group(work.run, backend), matrix_peak(backend, engine.dtype)
    for name, part in parts.items():
        rate = part.flop_per_s
        told = f", {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of a product of large matrices" if rate else ""
        print(f"  {part.share:6.1%}  {name}{told}")
    rates = {name: part.flop_per_s for name, part in parts.items() if part.flop_per_s}
    return {
        "breakdown": {name: part.share for name, part in parts.items()},
        "breakdown_flop_per_s": rates,
        "matrix_flop_per_s": peak,
    }


def _run_chain(settings: ChainConfig, backend: Backend, dtype: torch.dtype) -> Rows:
    cpu = backend.name == "cpu"
    shapes, given = _CPU_CHAINS if cpu else _CHAINS, False
    if settings.rows is not None and settings.width is not None:
        shapes, given = [(settings.rows, settings.width)], True
    sides = make_sides(settings, backend, dtype)
    rows = []
    for tokens, width in shapes:
        small = chain_job(min(tokens, 33), width, dtype=dtype)

        def run(tokens: int, width: int = width, small: Workload = small) -> dict[str, Any]:
            return measure_job(chain_job(tokens, width, dtype=dtype), small, sides, backend, **_times(settings))

        row = scaled_down(run, tokens, lambda n: n // 2 or None, lambda n: {"rows": n})
        if cpu and not given:
            row["scaled"] = {"asked": {"rows": 43120, "width": 5120}, "measured": {"rows": tokens}, "why": _CPU_WHY}
        rows.append(row)
    return rows


def _stack(config: MovaConfig, settings: StackConfig) -> Workload:
    blocks = min(settings.blocks or config.video.num_layers, config.video.num_layers)
    video = replace(config.video, num_layers=blocks)
    return stack_job(with_towers(config, video=video), settings.memory.checkpointing)


def _step(config: MovaConfig, settings: StepConfig) -> Workload:
    return step_job(config, settings.memory.checkpointing, batch=settings.batch, lora_rank=settings.lora_rank)


def _model(make: Callable[[MovaConfig, Any], Workload], **options: Any) -> Measure:
    return partial(_run_model, make, **options)


def _run_operators(settings: OperatorsConfig, backend: Backend, dtype: torch.dtype) -> Rows:
    return (choose_operators if settings.choose else operators).run(settings, backend, dtype)


SUITES: dict[str, Measure] = {
    "operators": _run_operators,
    "encode": encoding.run,
    "chain": _run_chain,
    "block": _model(lambda config, settings: block_job(config, "video")),
    "audio-block": _model(lambda config, settings: block_job(config, "audio")),
    "bridge": _model(lambda config, settings: bridge_job(config)),
    "stack": _model(_stack, layers=True),
    "denoise": _model(lambda config, settings: denoise_job(config), training=False, layers=True),
    "step": _model(_step, layers=True, breakdown=True),
}


def measure(name: str, settings: BenchConfig) -> int:
    """Run one measurement, print its rows and write its result file; returns 0."""
    dtype, backend = DTYPES[settings.dtype], get_backend(settings.device)
    if settings.json:
        check_result(settings.json)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    load = os.getloadavg()[0]
    print(f"{backend.describe()}; torch {torch.__version__}; {settings.dtype}; load average {load:.2f}")
    # float32 is to mean float32, for the check as for the time.
    with backend.full_precision():
        rows = SUITES[name](settings, backend, dtype)
    if settings.json:
        processes = max((row.get("processes", 1) for row in rows), default=1)
        facts = circumstances(backend, load, processes)
        write_result(settings.json, name, facts, dtype=settings.dtype, rows=rows)
        print(f"written to {settings.json}")
    return 0
