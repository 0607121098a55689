"""`python -m benchmarks.step_cache RUN`: clicks and bounces, and the latents' error, where the video tower is left out.

    python -m benchmarks.step_cache runs/any0 --out benchmarks/results/step-cache-nano.json

RUN: a model that `mova train --recipe nano-any` left. It is calibrated on clips of other seeds, then sampled on its
held-out clips: without a step cache; with planned ones, where the audio is computed in every step ("live"); with the
same plans but the audio left out with the video ("joint"); in fewer steps, as many as those run the video tower; and
with the adaptive cache at several thresholds, with its mean of passes.
Each is scored as `mova nano sync` does. The latents' error is the distance from those of the run without a cache, over
their norm. Besides: the error of a step's velocity, over its norm, by what is reused of earlier steps.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.checkpoints.locate import find_model
from mova_engine.files.results import write_result
from mova_engine.inference.denoising import Observed, Step
from mova_engine.inference.encoded_clip import sample_encoders
from mova_engine.inference.first_block import FirstBlock
from mova_engine.inference.pipeline import Pipeline, load_pipeline
from mova_engine.inference.requests import Request, make_requests, read_prompts
from mova_engine.inference.sample_folder import SampleFolder
from mova_engine.inference.sample_settings import SampleSettings, default_settings
from mova_engine.inference.step_cache import KIND, key_of, planned
from mova_engine.inference.step_calibration import calibrate
from mova_engine.inference.velocities import Latents, VelocityModel
from mova_engine.models.layers import ResidualStream
from mova_engine.models.tower import Tower
from mova_engine.scores.bounce_sync import measure, plain

_SPEEDUPS, _CALIBRATED, _BATCH, _LONGEST = (1.3, 1.6, 2.0), 16, 16, 4
_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.4)
# Seeds of the calibration's clips, beyond those of the sampled ones.
_OTHER_SEEDS = 1000


@contextmanager
def joint_skip() -> Iterator[None]:
    """Where the video is reused, the audio's velocity is too."""
    last: dict[Any, Any] = {}
    real = VelocityModel.evaluate

    def evaluate(self: VelocityModel, *args: Any, **options: Any) -> Any:
        last.clear()
        last.update(real(self, *args, **options))
        return dict(last)

    with (
        patch.object(VelocityModel, "evaluate", evaluate),
        patch.object(VelocityModel, "evaluate_audio", lambda *_: dict(last)),
    ):
        yield


@dataclass
class Run:
    """The model with the requests for its held-out clips."""

    pipeline: Pipeline
    requests: Sequence[Request]
    work: Path
    # Passes of the video tower in the last run, per clip.
    passes: float = 0.0

    def sample(self, name: str, settings: SampleSettings) -> tuple[dict[str, Any], Latents]:
        """Make a clip for each request: how well their clicks fit their bounces, and the clean latents."""
        ends: list[Latents] = []
        # The adaptive cache decides clip by clip.
        batch, self.passes = _BATCH if settings.first_block is None else 1, 0.0

        def stepped(step: Step) -> None:
            self.passes += step.video_passes[0] * len(step.state.video) / len(self.requests)
            if step.index == settings.count - 1:
                ends.append(step.state)

        shape, count = self.pipeline.shape, len(self.requests)
        folder = SampleFolder(self.work / name, shape, count, overwrite=True)
        encoders = sample_encoders(shape, shape.frames, count)
        clips = self.pipeline.generate_into(encoders, self.requests, settings, batch=batch, on_step=stepped)
        for request, clip in zip(self.requests, clips, strict=True):
            assert clip is not None
            folder.add(clip, request.caption, {"seed": request.seed})
        report = json.loads(json.dumps(measure(folder.folder), default=plain))
        return report["own_sound"]["within_84_ms"]["f1"], Latents(
            *(torch.cat(each) for each in zip(*ends, strict=True))
        )


def distances(found: Latents, true: Latents) -> dict[str, float]:
    """Of each modality, over its norm."""
    return {name: float((x - y).norm() / y.norm()) for name, x, y in zip(Latents._fields, found, true, strict=True)}


class Reuse:
    """Errors of a video velocity by what is taken of earlier steps, over its norm: the velocity itself; the line
    through the velocities of two steps; and the change that all blocks made to their input, added to the input of now.
    """

    def __init__(self, pipeline: Pipeline, settings: SampleSettings) -> None:
        self._pipeline, self._levels = pipeline, settings.noise_levels(pipeline.schedule).video_sigmas
        self._tokens: dict[str, Any] = {}
        self._steps: list[dict[str, Any]] = []
        self._sums: defaultdict[str, list[float]] = defaultdict(list)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """While the video tower's tokens before and after its blocks are kept."""
        embed, finish, tower = Tower.embed, Tower.finish, self._pipeline.mova.video_dit

        def embedded(module: Tower, *args: Any) -> Any:
            stream, inputs = embed(module, *args)
            if module is tower:
                self._tokens |= {"before": stream.x.clone(), "inputs": inputs}
            return stream, inputs

        def finished(module: Tower, stream: ResidualStream, inputs: Any) -> Tensor:
            if module is tower:
                value = stream.settle(module.ops)
                self._tokens["after"] = value.clone()
                stream = ResidualStream(value)
            return finish(module, stream, inputs)

        with patch.object(Tower, "embed", embedded), patch.object(Tower, "finish", finished):
            yield

    def take(self, seen: Observed) -> None:
        """One evaluation."""
        if seen.level == 0:
            self._steps.clear()
        (branch,) = seen.found
        video, tokens = seen.found[branch][0], dict(self._tokens)
        sigma = self._levels[seen.level : seen.level + 1]
        for back in (1, 2):
            if seen.level < back + 1:
                continue
            near, far = self._steps[-back], self._steps[-back - 1]
            line = near["velocity"] + (near["velocity"] - far["velocity"]) * (
                (sigma - near["sigma"]) / (near["sigma"] - far["sigma"])
            )
            value = tokens["before"] + near["after"] - near["before"]
            output = self._pipeline.mova.video_dit.finish(ResidualStream(value), tokens["inputs"])
            residual = seen.model.prediction.velocity(output.float(), seen.state.video, sigma)
            # The first latent frame is given.
            for name, guess in (("velocity", near["velocity"]), ("line", line), ("residual", residual)):
                error = (guess - video)[:, :, 1:].norm() / video[:, :, 1:].norm()
                self._sums[f"{name}, {back} back"].append(float(error))
        self._steps.append({"velocity": video, "sigma": sigma, **tokens})

    def means(self) -> dict[str, float]:
        """Over steps and clips."""
        return {name: sum(values) / len(values) for name, values in self._sums.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--work", type=Path, default=Path("runs/step-cache"))
    args = parser.parse_args()
    folder, backend = find_model(args.run), get_backend("cpu")
    pipeline = load_pipeline(folder, backend)
    prompts = read_prompts(args.run / "heldout", pipeline.shape)
    run = Run(pipeline, [request for _, request in make_requests(prompts, len(prompts), 0)], args.work)
    settings = default_settings(pipeline.mova.config)
    settings = replace(settings, steps=args.steps or settings.steps)
    others = [request for _, request in make_requests(prompts, _CALIBRATED, _OTHER_SEEDS)]

    reuse = Reuse(pipeline, settings)
    with reuse.watch():
        list(pipeline.latents(others, settings, batch=_BATCH, observe=reuse.take))
    errors = calibrate(pipeline, others, settings, _LONGEST, batch=_BATCH)
    key, calibration = key_of(folder, pipeline.shape, settings, pipeline.schedule), args.work / "step_cache.json"
    write_result(calibration, KIND, circumstances(backend), key=key, clips=_CALIBRATED, errors=errors)

    f1, true = run.sample("plain", settings)
    ways: dict[str, Any] = {"plain": {"passes": settings.count, "f1": f1}}
    for speedup in _SPEEDUPS:
        plan = planned(calibration, key, speedup, settings, pipeline.schedule, pipeline.mova.config.experts)
        cached, name = replace(settings, cache=plan), f"{speedup:g}"
        f1, latents = run.sample(f"live-{name}", cached)
        facts = {"passes": plan.evaluations, "reused": plan.reused}
        predicted = {"video": plan.video_error, "audio": plan.audio_error}
        ways[f"live {name}"] = {**facts, "f1": f1, "predicted": predicted, "error": distances(latents, true)}
        with joint_skip():
            f1, latents = run.sample(f"joint-{name}", cached)
        ways[f"joint {name}"] = {**facts, "f1": f1, "error": distances(latents, true)}
        f1, latents = run.sample(f"fewer-{name}", replace(settings, steps=plan.evaluations))
        ways[f"fewer {name}"] = {"passes": plan.evaluations, "f1": f1, "error": distances(latents, true)}
    for threshold in _THRESHOLDS:
        f1, latents = run.sample(f"adaptive-{threshold}", replace(settings, cache=FirstBlock(threshold)))
        ways[f"adaptive {threshold}"] = {"passes": run.passes, "f1": f1, "error": distances(latents, true)}
    write_result(args.out, "step-cache-benchmark", circumstances(backend), ways=ways, reuse=reuse.means())
    for name, mean in reuse.means().items():
        sys.stdout.write(f"{name}: {mean:.4f}\n")
    for name, way in ways.items():
        f1, error = way["f1"], way.get("error", {"video": math.nan, "audio": math.nan})
        interval = f"{f1['value']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}]"
        sys.stdout.write(f"{name}: {way['passes']:g} passes, F1 {interval}, video {error['video']:.4f}, ")
        sys.stdout.write(f"audio {error['audio']:.4f}, predicted {way.get('predicted')}\n")
