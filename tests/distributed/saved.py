"""What runs have left."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from mova_engine.train.metrics import read_metrics


def losses(out: Path) -> list[float]:
    """Of every step that a run has done."""
    return [row["loss"] for row in read_metrics(out / "metrics.jsonl")]


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint but the generators' states."""
    files = [file for file in sorted(checkpoint.rglob("*.safetensors")) if file.stem != "rng"]
    return {f"{file.relative_to(checkpoint)}:{name}": x for file in files for name, x in load_file(file).items()}


def progress(checkpoint: Path) -> dict:
    """Where it stands: in the data, in the metrics."""
    return json.loads((checkpoint / "training" / "state.json").read_text())["progress"]


def different(found: Path, expected: Path) -> list[str]:
    """Names of what is not the same, bit for bit, in two checkpoints."""
    ours, theirs = tensors(found), tensors(expected)
    wrong = sorted(ours.keys() ^ theirs.keys())
    wrong += [name for name in ours.keys() & theirs.keys() if not torch.equal(ours[name], theirs[name])]
    return wrong + (["progress"] if progress(found) != progress(expected) else [])
