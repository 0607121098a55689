"""What quantised weights cost: nano's sound on its bounces, and adapters trained beside them, for each format.

    python -m benchmarks.quantised_bases RUN --out benchmarks/results/quantised-nano.json

RUN: a trained nano model with its held-out clips, as `make nano` leaves it. For each format the folder is quantised
(`mova quantise`), its held-out clips are sampled and scored (`mova nano sync`), and adapters are trained on it
(`mova train --recipe lora-nano`) with the same clips, seeds and dtype as on the weights that were not quantised.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.stages import DENOISE
from mova_engine.files.results import write_result
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.models.modality import modalities

# NF4's blocks of 64 inputs do not fit nano's 96 channels.
FORMATS = ("bf16", "fp8", "int8")
# Steps of the adapters' runs, and how often their loss is measured on held-out clips.
_STEPS, _EVERY = 100, 25


def mova(*words: str) -> None:
    """Run a command of the engine."""
    sys.stdout.write(f"mova {' '.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "mova_engine", *words], check=True)


def losses(run: Path) -> tuple[list[float], list[float]]:
    """(training losses, held-out losses) of a run, by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = sorted({key for row in rows for key in row if key.startswith("heldout/")})
    trained = [row["loss"] for row in rows if "loss" in row]
    held = [sum(row[key] for key in keys) for row in rows if keys and keys[0] in row]
    return trained, held


def measure(run: Path, name: str, work: Path) -> dict[str, Any]:
    """The scores of one format, and the losses of adapters trained on it."""
    folder, found = run, {}
    if name != "bf16":
        folder = work / name
        mova("quantise", str(run), "--weights", name, "--out", str(folder))
        report = json.loads((folder / "quantisation.json").read_text())
        found = {"relative_errors": {kind: row["relative"] for kind, row in report["errors"].items()}}
    made, adapted = work / f"{name}-clips", work / f"{name}-lora"
    mova(
        "sample",
        "--checkpoint",
        str(folder),
        "--prompts",
        str(run / "heldout"),
        "--out",
        str(made),
        "--dtype",
        "bfloat16",
    )
    mova("nano", "sync", str(made), "--json", str(work / f"{name}.json"))
    words = ["--recipe", "lora-nano", "--model.checkpoint", str(folder), "--out", str(adapted), "--dtype", "bfloat16"]
    words += ["--steps", str(_STEPS), "--checkpoint.every", str(_STEPS), "--log.every", "1"]
    mova("train", *words, "--validation.every", str(_EVERY), "--validation.samples", "0")
    trained, held = losses(adapted)
    return {**found, "sync": json.loads((work / f"{name}.json").read_text()), "losses": trained, "heldout": held}


@torch.no_grad()
def effect(folder: Path, run: Path) -> Tensor:
    """What a run's adapters change in the velocities of both modalities, at three noise levels of a clip of noise."""
    found: list[list[Tensor]] = []
    for lora in ([], [AdapterSpec(run)]):
        pipeline = load_pipeline(folder, get_backend("cpu"), dtype=torch.bfloat16, lora=lora)
        config, generator = pipeline.mova.config, torch.Generator().manual_seed(0)
        shapes = (
            (1, config.video.in_dim, *config.clip.latent_shape),
            (1, config.audio.in_dim, config.clip.audio_tokens),
            (1, config.text_tokens, config.video.text_dim),
        )
        inputs = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
        assert pipeline.residency is not None
        with pipeline.residency.stage(DENOISE[0]):
            times = [torch.tensor([t]) for t in (900.0, 500.0, 100.0)]
            outputs = [pipeline.mova(*modalities(*inputs, time, time)) for time in times]
        found.append([x.float().flatten() for output in outputs for x in output])
    return torch.cat([adapted - plain for plain, adapted in zip(*found, strict=True)])


def beside(row: dict[str, Any], base: dict[str, Any], changes: tuple[Tensor, Tensor]) -> dict[str, float]:
    """How far adapters on a format are from those on bf16.

    curve: mean difference of the training losses over their mean. size: of the adapters' effect, over its size in bf16.
    effect: the difference of both effects over their size in bf16.
    """
    curve = sum(abs(a - b) for a, b in zip(row["losses"], base["losses"], strict=True)) / sum(base["losses"])
    own, expected = changes
    size, difference = (float(x.norm() / expected.norm()) for x in (own, own - expected))
    return {"curve": curve, "size": size, "effect": difference}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/quantised-bases"))
    args = parser.parse_args()
    if args.work.exists():
        shutil.rmtree(args.work)
    args.work.mkdir(parents=True)
    rows = {name: measure(args.run, name, args.work) for name in FORMATS}
    folders = {name: find_model(args.run) if name == "bf16" else args.work / name for name in FORMATS}
    changes = {name: effect(folders[name], args.work / f"{name}-lora") for name in FORMATS}
    compared = {name: beside(rows[name], rows["bf16"], (changes[name], changes["bf16"])) for name in FORMATS[1:]}
    write_result(args.out, "quantised-bases", circumstances(get_backend("cpu")), formats=rows, beside_bf16=compared)
    for name in FORMATS:
        sys.stdout.write(f"{name}: {json.dumps(compared.get(name, {}))}\n")
