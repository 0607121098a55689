"""What a step of nano costs with Muon, beside AdamW's.

    python -m benchmarks.muon_steps --out benchmarks/results/muon-steps-nano.json

Training steps of the recipe nano (8 clips of random latents, float32, one thread) with each optimizer in turns, in this
process. Counted are seconds of the CPU that the process itself has used, which a busy machine changes little; of them
those within the optimizer apart.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.timing import interleave, median_ratio
from mova_engine.config.recipes import load_config
from mova_engine.files.results import write_result
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable, bind
from mova_engine.train.batch import LatentBatch
from mova_engine.train.masters import Weights
from mova_engine.train.model_setup import model_config
from mova_engine.train.optimizer import build_optimizer
from mova_engine.train.step import Updater

BASE = "AdamW"
WAYS: dict[str, dict[str, Any]] = {
    BASE: {},
    "Muon": {"name": "muon"},
    "Muon, 3 Newton-Schulz steps": {"name": "muon", "newton_schulz_steps": 3},
    "Muon, bfloat16": {"name": "muon", "newton_schulz_dtype": "bfloat16"},
    "Muon, every other step": {"name": "muon", "muon_every": 2},
    "Muon, 3 Newton-Schulz steps, every other step": {"name": "muon", "newton_schulz_steps": 3, "muon_every": 2},
}


def steps(settings: dict[str, Any], ops: OpTable, batch: LatentBatch) -> tuple[Callable[[], float], list[float]]:
    """A function that takes the next step and returns its CPU seconds, and a list to which it adds those of the
    optimizer.
    """
    config = load_config("nano", optim=settings)
    torch.manual_seed(0)
    model = Mova(model_config(config), ops)
    weights = Weights(model, torch.float32, config.optim.ema)
    updater = Updater(config, model, weights, build_optimizer(weights.masters, config.optim, ops), ops)
    update, within, number = updater.optimizer.step, list[float](), iter(range(10**6))

    def timed_update() -> None:
        began = time.process_time()
        update()
        within.append(time.process_time() - began)

    updater.optimizer.step = timed_update

    def step() -> float:
        at = next(number)
        prepared = updater.prepared(at, iter([batch]), lambda given: given)
        began = time.process_time()
        updater.step(at, prepared)
        return time.process_time() - began

    return step, within


def measure(rounds: int) -> list[dict[str, Any]]:
    """Rows: by optimizer median CPU seconds of a step and of the optimizer, and the ratio to AdamW's step."""
    ops, generator = bind(get_backend("cpu"), dtypes=(torch.float32,)), torch.Generator().manual_seed(0)
    shapes = {"audio": (8, 128, 69), "text": (8, 12, 64), "video": (8, 16, 9, 6, 6), "image": (8, 16, 9, 6, 6)}
    latents = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    batch = LatentBatch(empty_text=torch.zeros(1, 12, 64), ids=tuple(map(str, range(8))), **latents)
    ways = {name: steps(settings, ops, batch) for name, settings in WAYS.items()}
    times = interleave({name: step for name, (step, _) in ways.items()}, rounds=rounds)
    return [
        {
            "optimizer": name,
            "settings": WAYS[name],
            "cpu_seconds": statistics.median(each),
            "cpu_seconds_of_the_optimizer": statistics.median(ways[name][1][-len(each) :]),
            "times_adamw": asdict(median_ratio(each, times[BASE])),
        }
        for name, each in times.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(args.rounds)
    write_result(args.out, "muon-steps", circumstances(get_backend("cpu")), rows=rows)
    for row in rows:
        ms = [1e3 * row[name] for name in ("cpu_seconds", "cpu_seconds_of_the_optimizer")]
        ratio = row["times_adamw"]
        between = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        sys.stdout.write(f"{row['optimizer']}: {ms[0]:.1f} ms a step, {ms[1]:.1f} in the optimizer; {between}\n")
