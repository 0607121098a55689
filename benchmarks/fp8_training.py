"""nano trained with fp8 products, emulated, beside the same in bfloat16 and in float32: losses and deviations.

    python -m benchmarks.fp8_training --out benchmarks/results/fp8-training-nano.json

Clips, initial weights, noise levels and noise are the same in all runs of a seed; what differs is rounding. The first
steps of a run with fp8 products are compared layer by layer (`mova_engine.train.fp8_watch`), and every 100 after them.
A run that lies under --work is not trained again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.data.synthetic.bounce import generate
from mova_engine.files.results import write_result
from mova_engine.models.fp8_products import COMPARED
from mova_engine.train.metrics import METRICS, read_metrics

FP8 = "fp8 in bfloat16"
VARIANTS: dict[str, tuple[str, ...]] = {
    "float32": ("--dtype", "float32"),
    "bfloat16": ("--dtype", "bfloat16"),
    FP8: ("--dtype", "bfloat16", "--fp8.products", "emulated", "--fp8.check-every", "100"),
}
# Steps of a mean of losses.
_WINDOW = 50


def clips(folder: Path, count: int, split: str) -> Path:
    """So many clips of bouncing balls, written once. split: train, or heldout with other pairs of colour and tempo."""
    if not folder.is_dir():
        generate(folder, count, seed=1, split=split)
    return folder


def train(work: Path, variant: str, seed: int, steps: int) -> Path:
    """Train in a process of its own; returns the run's folder."""
    out = work / f"{variant.replace(' ', '-')}-{seed}-{steps}"
    if not (out / "checkpoints").is_dir():
        words = [sys.executable, "-m", "mova_engine.train", "--recipe", "nano", "--device", "cpu", "--out", str(out)]
        words += ["--data", str(clips(work / "data", 192, "train")), "--seed", str(seed), "--steps", str(steps)]
        words += ["--validation.data", str(clips(work / "heldout", 32, "heldout")), "--validation.every", str(steps)]
        words += ["--validation.samples", "0", "--checkpoint.every", str(steps), "--log.every", "1"]
        subprocess.run([*words, "--log.no-tensorboard", *VARIANTS[variant]], check=True)
    return out


def losses(out: Path) -> dict[str, Any]:
    """Means of the loss over windows of steps, and the loss on held-out clips at the end."""
    rows = read_metrics(out / METRICS)
    each = [row["loss"] for row in rows if "loss" in row]
    held = [row for row in rows if "heldout/video" in row][-1]
    windows = [fmean(each[begin : begin + _WINDOW]) for begin in range(0, len(each), _WINDOW)]
    return {"windows": windows, "heldout": {name: held[f"heldout/{name}"] for name in ("video", "audio")}}


def deviations(out: Path) -> dict[str, Any]:
    """Of all layers at the last comparison: the mean and the largest of each result; and the layers that were kept."""
    found = json.loads((out / "fp8.json").read_text(encoding="utf-8"))
    entries = found["layers"].values()
    by_result = {what: [entry[what] for entry in entries] for what in COMPARED}
    kept = [name for name, entry in found["layers"].items() if entry["in"] != "fp8"]
    spread = {what: {"mean": fmean(each), "largest": max(each)} for what, each in by_result.items()}
    return {"layers": len(entries), "slack": found["slack"], "kept": kept, "off": spread}


def measured(work: Path, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """By seed: losses by variant, and how far the fp8 products were off."""
    found: dict[str, Any] = {}
    for seed in seeds:
        runs = {variant: train(work, variant, seed, steps) for variant in VARIANTS}
        found[str(seed)] = {variant: losses(out) for variant, out in runs.items()}
        found[str(seed)][FP8] |= deviations(runs[FP8])
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/fp8-training"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results = measured(args.work, args.seeds, args.steps)
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    write_result(
        args.out, "fp8-training", circumstances(get_backend("cpu")), steps=args.steps, window=_WINDOW, seeds=results
    )
