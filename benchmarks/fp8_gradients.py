"""Adapters beside fp8 weights: whether they suffer from gradients that are quantised, or from a forward that is.

    python -m benchmarks.fp8_gradients RUN --out benchmarks/results/fp8-gradients-nano.json

RUN: a trained nano model. Adapters are trained for 100 steps on it (bf16) and on its fp8 form: as the engine computes;
with the gradient of a layer's input by the dequantised weight in bfloat16; with the forward by it too. A run that lies
under --work is not trained again. What the adapters change is measured on the weights they were trained on and on the
original ones: beside fp8, the quantisation of activations differs with and without adapters, which counts as a change.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quantised_bases import effect, losses
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.files.results import write_result
from mova_engine.memory.quantise_folder import quantise_folder
from mova_engine.ops import fp8_impl
from mova_engine.ops.dequantised_linear import dequantised_linear
from mova_engine.train.__main__ import main as train

VARIANTS = ("as it is", "bf16 gradients", "bf16 gradients and forward")
_STEPS = 100


def dequantise(weight: Tensor, weight_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight [o, i] of fp8 numbers and a scale for each row."""
    return (weight.float() * weight_scale.unsqueeze(1)).to(dtype)


def compute_otherwise(variant: str) -> None:
    """Replace the fp8 layer of this process by a variant of it."""

    def product(rows: Tensor, bias: Tensor | None, weight: Tensor, weight_scale: Tensor) -> Tensor:
        values, scale = fp8_impl.quantize_rows_reference(rows)
        return fp8_impl.scaled_product(values, scale, weight.t(), weight_scale, bias, rows.dtype)

    class Layer:
        @staticmethod
        def apply(quantize: Any, x: Tensor, weight: Tensor, weight_scale: Tensor, *more: Any) -> Tensor:
            forward = product if variant == VARIANTS[1] else None
            return dequantised_linear(dequantise, (weight, weight_scale), x, *more, product=forward)

    if variant != VARIANTS[0]:
        fp8_impl.__dict__["_Fp8Linear"] = Layer


def beside(found: Tensor, expected: Tensor) -> dict[str, float]:
    """size: over that expected; difference: over the same."""
    size, difference = (float(x.norm() / expected.norm()) for x in (found, found - expected))
    return {"size": size, "difference": difference}


def run_of(work: Path, variant: str, seed: int) -> Path:
    return work / f"{variant.replace(' ', '-')}-{seed}"


def adapters(folder: Path, out: Path, variant: str, seed: int) -> None:
    """Train in a process of its own."""
    if not (out / "checkpoints").is_dir():
        child = [sys.executable, "-m", "benchmarks.fp8_gradients", "--child", variant, str(folder), str(out), str(seed)]
        subprocess.run(child, check=True)


def child(variant: str, folder: str, out: str, seed: str) -> int:
    compute_otherwise(variant)
    words = ["--recipe", "lora-nano", "--model.checkpoint", folder, "--out", out, "--dtype", "bfloat16"]
    words += ["--steps", str(_STEPS), "--checkpoint.every", str(_STEPS), "--log.every", "1", "--seed", seed]
    return train([*words, "--validation.every", str(_STEPS), "--validation.samples", "0"])


def measured(base: Path, fp8: Path, work: Path, seed: int) -> dict[str, Any]:
    """What the variants' adapters of a seed change, beside those of the original weights."""
    adapters(base, run_of(work, "bf16", seed), VARIANTS[0], seed)
    plain = run_of(work, "bf16", seed)
    expected, (_, held) = effect(base, plain), losses(plain)
    rows: dict[str, Any] = {"bf16": {"heldout": held[-1], "on fp8": beside(effect(fp8, plain), expected)}}
    for variant in VARIANTS:
        out = run_of(work, variant, seed)
        adapters(fp8, out, variant, seed)
        where = {"on fp8": fp8, "on the original": base}
        rows[variant] = {"heldout": losses(out)[1][-1]}
        rows[variant] |= {name: beside(effect(folder, out), expected) for name, folder in where.items()}
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(*sys.argv[2:]))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/fp8-gradients"))
    args = parser.parse_args()
    if not (args.work / "fp8").is_dir():
        args.work.mkdir(parents=True, exist_ok=True)
        quantise_folder(args.run, args.work / "fp8", "fp8")
    found = {seed: measured(find_model(args.run), args.work / "fp8", args.work, seed) for seed in (1, 2)}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    write_result(args.out, "fp8-gradients", circumstances(get_backend("cpu")), steps=_STEPS, seeds=found)
