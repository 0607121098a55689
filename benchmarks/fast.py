"""`python -m benchmarks.fast RUN`: how far clips of `--fast` are from exact ones, beside those of Euler's steps.

    python -m benchmarks.fast runs/any0 --out benchmarks/results/fast-nano.json

RUN: a model that `mova train --recipe nano-any` left. Exact: Heun's method with many steps. The error is that of a
clip's clean latents over their standard deviation, the median over held-out clips (as `benchmarks.solvers`). The ways:
Euler with 16 steps and with 50, the released models' number; `--fast`; the same with a planned step cache at several
speed-ups, calibrated on as many clips of other seeds; and UniPC with as many steps as these have passes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.files.results import write_result
from mova_engine.inference.command_settings import FAST_SOLVER, FAST_STEPS
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request, make_requests, read_prompts
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.step_cache import KIND, key_of, planned
from mova_engine.inference.step_calibration import calibrate
from mova_engine.inference.velocities import Latents

_BATCH, _EXACT, _LONGEST, _OTHER_SEEDS = 16, 128, 4, 1000
_SPEEDUPS = (1.3, 1.6)


def latents(pipeline: Pipeline, requests: Sequence[Request], settings: SampleSettings) -> Latents:
    """Clean ones of all clips."""
    found = list(pipeline.latents(requests, settings, batch=_BATCH))
    return Latents(*(torch.cat(each) for each in zip(*found, strict=True)))


def errors(found: Latents, true: Latents) -> dict[str, float]:
    """Of each modality, the median over clips."""

    def error(x: Tensor, y: Tensor) -> float:
        x, y = x.flatten(1), y.flatten(1)
        return float(((x - y).square().mean(1).sqrt() / y.std(1)).median())

    return {name: error(x, y) for name, x, y in zip(Latents._fields, found, true, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path("runs/fast"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder, backend = find_model(args.run), get_backend("cpu")
    pipeline = load_pipeline(folder, backend)
    prompts = read_prompts(args.run / "heldout", pipeline.shape)
    requests, others = (
        [request for _, request in make_requests(prompts, args.clips, seed)] for seed in (0, _OTHER_SEEDS)
    )
    settings = default_settings(pipeline.mova.config)
    fast = replace(settings, solver=FAST_SOLVER, steps=FAST_STEPS)
    key, calibration = key_of(folder, pipeline.shape, fast, pipeline.schedule), args.work / "step_cache.json"
    rows = calibrate(pipeline, others, fast, _LONGEST, batch=_BATCH)
    write_result(calibration, KIND, circumstances(backend), key=key, clips=args.clips, errors=rows)
    of = pipeline.mova.config.experts
    plans = {x: planned(calibration, key, x, fast, pipeline.schedule, of) for x in _SPEEDUPS}
    true = latents(pipeline, requests, replace(settings, solver="heun", steps=_EXACT))
    asked = {"euler 50": replace(settings, steps=50), "euler 16": replace(settings, steps=16), "fast": fast}
    asked |= {f"fast, cache {x:g}": replace(fast, cache=plan) for x, plan in plans.items()}
    for x, plan in plans.items():
        asked[f"unipc, as many as with {x:g}"] = replace(fast, steps=plan.evaluations)
    ways: dict[str, Any] = {}
    for name, each in asked.items():
        passes = each.count - len(each.reused)
        ways[name] = {"passes": passes, "error": errors(latents(pipeline, requests, each), true)}
        sys.stdout.write(f"{name}: {ways[name]}\n")
        sys.stdout.flush()
    facts = {"clips": args.clips, "exact_steps": _EXACT, "plans": {str(x): plan.words() for x, plan in plans.items()}}
    write_result(args.out, "fast", circumstances(backend), **facts, ways=ways)
