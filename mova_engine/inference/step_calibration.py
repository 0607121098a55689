"""Measures what it costs to reuse a video's velocity: the errors from which `step_cache` plans.

Clips are made without any reuse. At each step the audio tower is run again on the recorded video of each of the steps
before, as a run with reuse would: that gives, for every pair of steps, the error of the video's velocity and of the
audio's. The audio's extra evaluations cost little beside the video tower.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mova_engine.diffusion.guidance import Branch
from mova_engine.diffusion.schedule import Steps
from mova_engine.errors import MovaError
from mova_engine.inference.denoising import Observed, Step
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.velocities import Latents, Recording
from mova_engine.inference.video_passes import phases

# The name of what guidance makes of its branches.
GUIDED = "guided"
_HOST = torch.device("cpu")


def calibrate(
    pipeline: Pipeline,
    requests: Sequence[Request],
    settings: SampleSettings,
    longest: int,
    *,
    batch: int = 1,
    on_step: Callable[[Step], None] | None = None,
) -> list[dict[str, Any]]:
    """Make clips without reuse and return the errors: for each pair of a step and an earlier one of its phase, at most
    `longest` before it, {"step", "from", "expert", "video": {branch: error}, "audio": {branch: error}}.

    An error is that which the reuse leaves in the clean latents, over their norm, to first order: the norm of the
    velocities' difference times the length of the step in sigma is the deviation at the step's end, where the clean
    latents are scaled by 1 - sigma; the model reads it there as a deviation of the clean latents that is 1 / (1 -
    sigma) times as large. Over all clips, without given latents. branch: "text+bridge", "text", "bridge", "neither",
    and "guided": of the guided velocity.
    Raises MovaError for several processes.
    """
    if pipeline.processes.launch.world > 1:
        raise MovaError("a step cache is calibrated by one process: leave torchrun out")
    steps, guidance = settings.noise_levels(pipeline.schedule), settings.guidance
    places = [step / settings.count for step in range(settings.count)]
    observer = _Observer(steps, phases(guidance, places, steps.experts, pipeline.mova.config.experts), longest)
    for latents in pipeline.latents(requests, settings, batch=batch, on_step=on_step, observe=observer.take):
        observer.end(latents)
    return observer.errors()


def branch_name(branch: Branch) -> str:
    """In words."""
    return "+".join(word for word, there in zip(("text", "bridge"), branch, strict=True) if there) or "neither"


class _Observer:
    """Sums squares over the clips."""

    def __init__(self, steps: Steps, first: Sequence[int], longest: int) -> None:
        """first: of `phases`."""
        self.steps, self.first = steps, first
        self._kept: deque[tuple[int, Recording]] = deque(maxlen=longest)
        self._given: tuple[GivenLatents | None, GivenLatents | None] = None, None
        # By step, earlier step and branch: of video and audio.
        self._squares: defaultdict[tuple[int, int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._norms = [0.0, 0.0]

    def take(self, seen: Observed) -> None:
        """An evaluation, and those of the audio tower on earlier ones' videos."""
        conditions, level = seen.model.conditions, seen.level
        self._given = conditions.video, conditions.audio
        branches = seen.guidance.branches
        guided = seen.guidance.combine(lambda *branch: seen.found[branch])
        for before, kept in self._kept:
            if before < self.first[level]:
                continue
            there = kept.to(seen.state.video.device)
            stale = seen.model.evaluate_audio(branches, seen.state, self.steps, level, there)
            pairs = {branch_name(branch): (stale[branch], seen.found[branch]) for branch in branches}
            pairs[GUIDED] = seen.guidance.combine(lambda *branch, stale=stale: stale[branch]), guided
            for name, (old, new) in pairs.items():
                squares = self._squares[level, before, name]
                for i, given in enumerate(self._given):
                    squares[i] += _squares(old[i] - new[i], given)
        self._kept.append((level, seen.recording.to(_HOST)))

    def end(self, latents: Latents) -> None:
        """The clean latents of a batch whose steps are over."""
        self._kept.clear()
        for i, (x, given) in enumerate(zip(latents, self._given, strict=True)):
            self._norms[i] += _squares(x, given)

    def errors(self) -> list[dict[str, Any]]:
        """Of all clips."""
        rows: dict[tuple[int, int], dict[str, Any]] = {}
        sigmas = self.steps.video_sigmas, self.steps.audio_sigmas
        for (level, before, name), squares in sorted(self._squares.items()):
            head = {"step": level, "from": before, "expert": self.steps.experts[level], "video": {}, "audio": {}}
            row = rows.setdefault((level, before), head)
            for i, modality in enumerate(Latents._fields):
                begin, end = sigmas[i][level : level + 2].tolist()
                norm = self._norms[i]
                row[modality][name] = (begin - end) / (1 - end) * (squares[i] / norm) ** 0.5 if norm else 0.0
        return list(rows.values())


def _squares(x: Tensor, given: GivenLatents | None) -> float:
    """The sum of squares over the latents that are not given."""
    if given is not None:
        x = x[:, :, ~torch.tensor(given.positions, device=x.device)]
    return float(x.double().square().sum())
