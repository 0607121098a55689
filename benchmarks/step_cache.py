"""`python -m benchmarks.step_cache RUN...`: clicks and bounces, and the latents' error, where the video tower is left
out.

    python -m benchmarks.step_cache runs/any0 runs/any1 --guided --out benchmarks/results/step-cache-nano.json

RUN: a model that `mova train --recipe nano-any` left. Each is calibrated on clips of other seeds, then sampled on the
first one's held-out clips: without a step cache; with planned ones, where the audio is computed in every step ("live");
with the same plans but the audio left out with the video ("joint"); in fewer steps, as many as those run the video
tower; and with the adaptive cache, clip by clip, at several thresholds. Each is scored as `mova nano sync` does, the
clips of all models together, within several tolerances. The latents' error is the distance from those of the run
without a cache, over their norm; with guidance, which nano was not trained for, from those of guidance in all steps.
Besides: the error of a step's velocity, over its norm, by what is reused of earlier steps.
"""

import argparse
import json
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
from mova_engine.data.metadata import read_metadata
from mova_engine.diffusion.guidance import Guidance
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
from mova_engine.scores.bounce_events import Events, observe
from mova_engine.scores.bounce_sync import plain, score

_CALIBRATED, _BATCH, _LONGEST = 16, 16, 4
# A codec's latent of sound is 20 ms, a picture 42 ms.
_TOLERANCES_MS = (10, 21, 42, 84)
# Scale of guidance by text, and shares of the steps after which it ends.
_GUIDED_BY, _UNTIL = 2.0, (0.5,)
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

    def sample(self, name: str, settings: SampleSettings) -> tuple[list[Events], Latents]:
        """Make a clip for each request: what is seen and heard in them, and the clean latents."""
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
        captions = {entry.path: entry.caption for entry in read_metadata(folder.folder)}
        seen = [observe(path, captions[path]) for path in sorted(folder.folder.glob("*.mp4"))]
        return seen, Latents(*(torch.cat(each) for each in zip(*ends, strict=True)))


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


def studied(args: argparse.Namespace, number: int) -> tuple[dict[str, Any], dict[str, list[Events]], dict[str, float]]:
    """What one model gives: by way its figures, by way what is seen and heard, and errors by what is reused."""
    folder, backend = find_model(args.runs[number]), get_backend("cpu")
    pipeline, work = load_pipeline(folder, backend), args.work / str(number)
    prompts = read_prompts(args.runs[0] / "heldout", pipeline.shape)
    run = Run(pipeline, [request for _, request in make_requests(prompts, len(prompts), 0)], work)
    settings = default_settings(pipeline.mova.config)
    settings = replace(settings, steps=args.steps or settings.steps)
    others = [request for _, request in make_requests(prompts, _CALIBRATED, _OTHER_SEEDS)]

    reuse = Reuse(pipeline, settings)
    with reuse.watch():
        list(pipeline.latents(others, settings, batch=_BATCH, observe=reuse.take))
    errors = calibrate(pipeline, others, settings, _LONGEST, batch=_BATCH)
    key, calibration = key_of(folder, pipeline.shape, settings, pipeline.schedule), work / "step_cache.json"
    write_result(calibration, KIND, circumstances(backend), key=key, clips=_CALIBRATED, errors=errors)

    seen: dict[str, list[Events]] = {}
    seen["plain"], true = run.sample("plain", settings)
    ways: dict[str, Any] = {"plain": {"passes": round(run.passes, 6)}}

    def sampled(name: str, settings: SampleSettings, true: Latents = true, **facts: Any) -> Latents:
        seen[name], latents = run.sample(name.replace(" ", "-"), settings)
        ways[name] = {"passes": round(run.passes, 6), "error": distances(latents, true), **facts}
        return latents

    for speedup in args.speedups:
        plan = planned(calibration, key, speedup, settings, pipeline.schedule, pipeline.mova.config.experts)
        cached, name = replace(settings, cache=plan), f"{speedup:g}"
        predicted = {"video": plan.video_error, "audio": plan.audio_error}
        sampled(f"live {name}", cached, reused=plan.reused, predicted=predicted)
        with joint_skip():
            sampled(f"joint {name}", cached, reused=plan.reused)
        sampled(f"fewer {name}", replace(settings, steps=plan.evaluations))
    for threshold in args.thresholds:
        sampled(f"adaptive {threshold:g}", replace(settings, cache=FirstBlock(threshold)))
    if args.guided:
        guidance = Guidance("text", _GUIDED_BY)
        whole = sampled("guided", replace(settings, guidance=guidance))
        for until in _UNTIL:
            sampled(f"guided until {until:g}", replace(settings, guidance=replace(guidance, end=until)), whole)
    return ways, seen, reuse.means()


def pooled(rows: Sequence[dict[str, Any]], seen: Sequence[dict[str, list[Events]]], name: str) -> dict[str, Any]:
    """A way over all models: F1 of all their clips together, means of the errors."""
    report = score([clip for each in seen for clip in each[name]], tolerances_ms=_TOLERANCES_MS)["own_sound"]
    found: dict[str, Any] = {"passes": [each[name]["passes"] for each in rows]}
    found |= {f"within {tolerance} ms": report[f"within_{tolerance}_ms"]["f1"] for tolerance in _TOLERANCES_MS}
    found["median error, ms"] = report["median_error_ms"]
    for what in ("predicted", "error"):
        if what in rows[0][name]:
            each = [row[name][what] for row in rows]
            found[what] = {modality: sum(x[modality] for x in each) / len(each) for modality in Latents._fields}
    return json.loads(json.dumps(found, default=plain))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="default: the model's")
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.6, 2.0, 2.6])
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.05, 0.1, 0.2], help="of the adaptive cache")
    parser.add_argument("--guided", action="store_true", help="also with guidance by text, in all steps and in some")
    parser.add_argument("--work", type=Path, default=Path("runs/step-cache"))
    args = parser.parse_args()
    rows, seen, reuses = zip(*(studied(args, number) for number in range(len(args.runs))), strict=True)
    means = {name: sum(each[name] for each in reuses) / len(reuses) for name in reuses[0]}
    ways = {name: pooled(rows, seen, name) for name in rows[0]}
    facts = {"ways": ways, "runs": rows, "reuse": means}
    write_result(args.out, "step-cache-benchmark", circumstances(get_backend("cpu")), **facts)
    for name, mean in means.items():
        sys.stdout.write(f"{name}: {mean:.4f}\n")
    for name, way in ways.items():
        f1 = (way[f"within {tolerance} ms"] for tolerance in _TOLERANCES_MS)
        told = ", ".join(f"{each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]" for each in f1)
        sys.stdout.write(f"{name}: {way['passes']} passes, F1 {told}, error {way.get('error')}, ")
        sys.stdout.write(f"predicted {way.get('predicted')}\n")
