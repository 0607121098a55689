"""All random draws of a training step, as a function of (seed, step) alone.

Resuming needs no generator states, and neither the device nor the split into micro-batches or ranks changes what is
drawn: the expert and the noise levels belong to the step, the noise to a clip's place in the step. Every generator runs
on the CPU, so that loss curves of different devices can be laid over each other; for a 360p clip drawing its 2.8
million normals costs about 20 ms on one core.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mova_engine.config.diffusion import DiffusionSettings
from mova_engine.diffusion.schedule import HIGH_NOISE, LOW_NOISE, Schedule, TrainingTimes


def generator(seed: int, *key: object) -> torch.Generator:
    """A CPU generator for the purpose that `key` names, independent of every other purpose's."""
    text = "/".join(str(part) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def first_clip(micro_batch: int, groups: int, data_rank: int, batch: int) -> int:
    """The place in the step of the first clip of a group's micro-batch: what its noise and noise levels belong to."""
    return (micro_batch * groups + data_rank) * batch


def rank_seed(seed: int, data_rank: int) -> int:
    """Seed of whatever draws from the libraries' own generators, which the engine does not: equal in ranks that share a
    clip.
    """
    return seed + data_rank


@dataclass(frozen=True)
class StepDraw:
    """What an optimizer step draws for its n clips: the video expert that it trains (None: the model has one), noise
    levels [n] (0 where a modality is given), and which clips lose their text, bool [n].

    video_factors, audio_factors [n]: what each clip's loss counts, 0 where the modality is given, and as much more
    elsewhere that the loss is a mean over the others; None: nothing is given. bridge: whether it is used. starts [n],
    bool: clips whose beginning is given; None: no clip's is.
    """

    expert: int | None
    times: TrainingTimes
    drop_text: Tensor
    video_factors: Tensor | None = None
    audio_factors: Tensor | None = None
    bridge: bool = True
    starts: Tensor | None = None

    def part(self, first: int, count: int) -> "StepDraw":
        """The draw of clips `first` to `first + count - 1`: a micro-batch's."""
        here = slice(first, first + count)
        times = TrainingTimes(*(getattr(self.times, name)[here] for name in TrainingTimes.__dataclass_fields__))
        optional = self.video_factors, self.audio_factors, self.starts
        video, audio, starts = (None if x is None else x[here] for x in optional)
        return StepDraw(self.expert, times, self.drop_text[here], video, audio, self.bridge, starts)


def draw_step(settings: DiffusionSettings, experts: int, seed: int, step: int, clips: int) -> StepDraw:
    """Draw for optimizer step `step` of `clips` clips over all ranks.

    With two experts one of them serves the whole step, drawn with the probability of its interval of times.
    """
    source = generator(seed, "step", step)
    expert = None
    if experts == 2:
        high = torch.rand((), generator=source) < Schedule.of(settings).expert_probability(HIGH_NOISE)
        expert = HIGH_NOISE if high else LOW_NOISE
    times = draw_times(settings, source, expert, clips)
    drop_text = torch.rand(clips, generator=source) < settings.text_dropout
    # From generators of their own: what else is drawn does not depend on these settings.
    bridge = True
    if settings.bridge_dropout:
        bridge = bool(torch.rand((), generator=generator(seed, "bridge", step)) >= settings.bridge_dropout)
    if not settings.given:
        return StepDraw(expert, times, drop_text, bridge=bridge)
    place = torch.rand(clips, generator=generator(seed, "given", step))
    # A clean video is never seen by the expert of high noise.
    video = (place < settings.given_video) & (expert != HIGH_NOISE)
    whole = settings.given_video + settings.given_audio
    audio = (place >= settings.given_video) & (place < whole)
    starts = (place >= whole) & (place < settings.given) if settings.given_start else None
    if not whole:
        return StepDraw(expert, times, drop_text, bridge=bridge, starts=starts)
    times = TrainingTimes(
        times.video_sigma.masked_fill(video, 0.0),
        times.audio_sigma.masked_fill(audio, 0.0),
        times.video_timestep.masked_fill(video, 0.0),
        times.audio_timestep.masked_fill(audio, 0.0),
    )
    return StepDraw(expert, times, drop_text, _counted(video), _counted(audio), bridge, starts)


def _counted(given: Tensor) -> Tensor:
    """Factors [n] of losses, float32: 0 where `given`, and a mean of 1, unless all are."""
    left = (~given).float()
    return left / left.mean().clamp(min=torch.finfo(torch.float32).tiny)


def draw_times(settings: DiffusionSettings, source: torch.Generator, expert: int | None, clips: int) -> TrainingTimes:
    """Noise levels of `clips` clips within an expert's interval."""
    paired = settings.timestep_sampling == "paired"
    return Schedule.of(settings).draw(source, clips, expert, paired=paired, stratified=settings.stratified)


def draw_noise(
    shapes: tuple[tuple[int, ...], ...], seed: int, step: int | str, first: int, count: int
) -> tuple[Tensor, ...]:
    """Standard normal noise, float32 on the CPU: for each shape a tensor [count, *shape], for clips `first`,
    `first + 1`, ... of the step.
    """
    tensors = tuple(torch.empty(count, *shape) for shape in shapes)
    for index in range(count):
        source = generator(seed, "noise", step, first + index)
        for tensor in tensors:
            torch.randn(tensor.shape[1:], generator=source, out=tensor[index])
    return tensors
