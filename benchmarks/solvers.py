"""`python -m benchmarks.solvers RUN`: how far a model's clips are from exact ones, by solver and number of steps.

    python -m benchmarks.solvers runs/nano --out benchmarks/results/solvers-nano.json --plot docs/solvers.svg

RUN: a trained nano model. Exact: Heun's method with many steps. The error is that of a clip's clean latents over their
standard deviation, for each modality; the median over 24 held-out clips, since a few of them go another way at a fork.
"""

import argparse
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.config.diffusion import SOLVERS
from mova_engine.config.stages import DENOISE
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.solvers import solver
from mova_engine.files.results import write_result
from mova_engine.inference.clip_codecs import ClipCodecs
from mova_engine.inference.denoising import denoise, draw_noise
from mova_engine.inference.pipeline import load_pipeline
from mova_engine.inference.requests import make_requests, read_prompts
from mova_engine.inference.velocities import Latents

_CLIPS, _STEPS, _EXACT = 24, (4, 8, 16, 32, 64, 128), 512


class Sampler:
    """A run's model, with the conditions and the noise of a few clips."""

    def __init__(self, run: Path) -> None:
        self.pipeline = load_pipeline(find_model(run), get_backend("cpu"))
        prompts = read_prompts(run / "heldout", self.pipeline.shape)[:_CLIPS]
        requests = [request for _, request in make_requests(prompts, _CLIPS, 0)]
        codecs = ClipCodecs(self.pipeline.codecs, self.pipeline.shape, self.pipeline.processes, self.pipeline.residency)
        (encoded,) = codecs.encode([requests], "")
        device = torch.device("cpu")
        self.conditions = codecs.gather(encoded, requests, device)
        self.noise = draw_noise(self.pipeline.mova.config, range(_CLIPS), self.pipeline.shape, device)

    def latents(self, name: str, steps: int) -> Latents:
        """Clean latents."""
        pipeline = self.pipeline
        guidance = pipeline.mova.config.sampling.guidance
        assert guidance == "none", "nano is sampled without guidance"
        assert pipeline.residency is not None
        with pipeline.residency.stage(DENOISE[0]):
            return denoise(
                pipeline.mova,
                self.conditions,
                self.noise,
                pipeline.schedule.inference(steps),
                Guidance("none"),
                pipeline.prediction,
                fps=pipeline.shape.fps,
                options=replace(pipeline.options, solver=name),
            )


def _error(found: torch.Tensor, true: torch.Tensor) -> float:
    """The median over clips."""
    flat, exact = found.flatten(1), true.flatten(1)
    return float(((flat - exact).square().mean(1).sqrt() / exact.std(1)).median())


def orders(errors: list[float]) -> list[float]:
    """The order between numbers of steps that double: log2 of the errors' ratio."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


def plot(rows: dict[str, Any], out: Path) -> None:
    """Errors against evaluations of the model, one panel for each modality."""
    matplotlib.use("Agg")
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for panel, modality in zip(panels, Latents._fields, strict=True):
        for name, row in rows.items():
            panel.loglog(row["evaluations"], row[modality], marker="o", label=name)
        panel.set_title(modality)
        panel.set_xlabel("evaluations of the model")
        panel.grid(True, which="both", alpha=0.3)
    panels[0].set_ylabel("error of the clean latents")
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    args = parser.parse_args()
    sampler = Sampler(args.run)
    exact, rows = sampler.latents("heun", _EXACT), {}
    for name in SOLVERS:
        row: dict[str, Any] = {"steps": list(_STEPS), "evaluations": [len(solver(name).evaluations(n)) for n in _STEPS]}
        found = [sampler.latents(name, steps) for steps in _STEPS]
        for modality, true, each in zip(Latents._fields, exact, zip(*found, strict=True), strict=True):
            errors = [_error(x, true) for x in each]
            row |= {modality: errors, f"{modality}_orders": orders(errors)}
            sys.stdout.write(f"{name:6s} {modality}: {' '.join(f'{error:.4f}' for error in errors)}\n")
        rows[name] = row
    write_result(args.out, "solvers", circumstances(get_backend("cpu")), solvers=rows)
    plot(rows, args.plot)
