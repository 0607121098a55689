"""The denoising loop: from noise to the latents of video and audio, both at once, or of one while the other is given.

A solver integrates the learned velocity (Lipman et al., 2023). Latents, guidance and steps are float32 in every dtype
of the towers; noise levels are those of the schedule, not rounded to that dtype.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from mova_engine.config.diffusion import check_solver
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import DENOISE
from mova_engine.diffusion.guidance import Branch, Guidance, Velocities
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import LOW_NOISE, Steps
from mova_engine.diffusion.solvers import solver
from mova_engine.distributed.branches import all_branches
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.inference.first_block import FirstBlockCache
from mova_engine.inference.given_latents import GivenLatents
from mova_engine.inference.lossy_attention import LossyAttention
from mova_engine.inference.velocities import Conditions, Latents, Recording, VelocityModel
from mova_engine.inference.video_passes import Pass, entered, phases, repeating_passes, reusing_passes
from mova_engine.memory.residency import Residency, stage
from mova_engine.models.mova import Mova


@dataclass(frozen=True)
class Step:
    """One denoising step. index: from 0. expert: index of the video expert. state: the latents after the step.
    velocity: the guided velocity of the step. video_passes: evaluations of the video tower in the step, and how many
    there would be without any cache.
    """

    index: int
    expert: int
    state: Latents
    velocity: Latents
    video_passes: tuple[int, int]


@dataclass(frozen=True)
class Observed:
    """One evaluation of both towers: the model, the index of the noise level, the state, the guidance there, the
    velocities by branch, and what later evaluations need to run the audio tower on this one's video.
    """

    model: VelocityModel
    level: int
    state: Latents
    guidance: Guidance
    found: dict[Branch, Velocities]
    recording: Recording


@dataclass(frozen=True)
class LoopOptions:
    """How the loop runs. The first three options must be as in training.

    clean_first_frame: latent frame 0 is the given image at each step's noise level, not the network's output; for
    networks whose training loss excluded that frame.
    bridge: False for a model that was trained without a bridge.
    clean_start: a beginning that is given of both modalities is shown clean, for models that were trained so
    (recipes' `given_start`). False: by replacement, as other stretches.
    batch_guidance: evaluations that differ only in the text share one forward of twice the batch; False halves the
    memory.
    solver: one of `diffusion.solvers`.
    video_every: for sound to a given video: the video tower runs in one of so many evaluations, and the audio reads in
    the others what it read then. 0: it runs once, without what the bridge brings it from the audio; the video then does
    not depend on the audio, so that nothing is lost by it.
    first_block: threshold of the adaptive step cache (`inference.first_block`), of one clip at a time; None: none.
    attention: approximates the video tower's self-attention in all but the first steps; None: it is exact.
    reused: steps, from 0, in which the video tower does not run: the video moves along the velocity of the step before,
    while the audio tower runs on what the bridge read of the video then (`inference.step_cache` chooses them).
    """

    clean_first_frame: bool = False
    bridge: bool = True
    clean_start: bool = False
    batch_guidance: bool = True
    solver: str = "euler"
    video_every: int = 1
    reused: tuple[int, ...] = ()
    first_block: float | None = None
    attention: LossyAttention | None = None

    def __post_init__(self) -> None:
        check_solver(self.solver)
        if self.video_every < 0:
            raise MovaError(f"video_every must be at least 0, got {self.video_every}")
        if self.reused and self.first_block is not None:
            raise MovaError("a step cache is planned or adaptive, not both")
        if (self.reused or self.first_block is not None) and self.solver == "heun":
            raise MovaError(
                "solver heun corrects each step by a second evaluation, which a reused video velocity makes an empty "
                "one: with the step cache take euler or unipc"
            )


def draw_noise(
    config: MovaConfig, seeds: Sequence[int], clip: ClipConfig, device: torch.device | str | None = None
) -> Latents:
    """Draw standard normal latents, float32, for one clip per seed.

    Each clip has its own generator on the CPU: its noise depends neither on the other clips nor on the device.
    """
    video_shape, audio_shape = (config.video.out_dim, *clip.latent_shape), (config.audio.out_dim, clip.audio_tokens)
    pairs = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        pairs.append((torch.randn(video_shape, generator=generator), torch.randn(audio_shape, generator=generator)))
    video, audio = zip(*pairs, strict=True)
    return Latents(torch.stack(video).to(device), torch.stack(audio).to(device))


# Not inference mode: the towers cache rotary tables, and tensors made in inference mode cannot be used in training.
@torch.no_grad()
def denoise(
    mova: Mova,
    conditions: Conditions,
    noise: Latents,
    steps: Steps,
    guidance: Guidance,
    prediction: Prediction,
    *,
    fps: float = 24.0,
    options: LoopOptions | None = None,
    on_step: Callable[[Step], None] | None = None,
    observe: Callable[[Observed], None] | None = None,
    processes: Processes | None = None,
    residency: Residency | None = None,
) -> Latents:
    """Denoise `noise` by all `steps`; return the clean latents, float32, on the device of the noise.

    fps: video frames per second, with which the bridge aligns audio and video tokens. on_step: called after every step.
    observe: called after every evaluation of both towers, of a single process; each is recorded for it.
    processes: the processes that make the clips together. All pass the same arguments and return bit-identical results;
    each computes its guidance branches on its tokens. residency: moves towers and bridge to the device for the steps
    that use them; None: they are there.
    Raises MovaError for shapes that do not fit, and for the first step after which the latents are not finite.
    """
    options, place = options or LoopOptions(), processes or Processes()
    start = Latents(noise.video.float(), noise.audio.float())
    if options.clean_start:
        conditions = _with_clean_start(conditions)
    if options.clean_first_frame:
        conditions = _with_first_frame(conditions, start)
    given = conditions.video, conditions.audio
    for name, part, latents in zip(Latents._fields, given, start, strict=True):
        if part is not None:
            part.check(latents, name)
    if conditions.video is not None and conditions.video.is_whole:
        # A clean video is at timestep 0, where the expert of low noise serves.
        steps = replace(steps, experts=(LOW_NOISE,) * len(steps.experts))
    count, kind = len(steps.experts), solver(options.solver)
    evaluations = kind.evaluations(count)
    _check_left_out(mova, conditions, options)
    _check_adaptive(mova, start, options, place)
    model = VelocityModel(
        mova,
        conditions,
        prediction,
        fps,
        options.bridge,
        options.batch_guidance,
        place.sharding,
        1.0 if options.video_every else 0.0,
    )
    places, experts = [each.level / count for each in evaluations], [steps.experts[each.level] for each in evaluations]
    when = guidance, places, experts, mova.config.experts
    if options.reused:
        passes = reusing_passes(*when, options.reused, place)
    else:
        passes = repeating_passes(*when, options.video_every, place)
    if observe is not None:
        passes = [replace(each, video="record") if each.video == "run" else each for each in passes]
    elif mova.streamed is not None:
        mova.streamed.plan(entered(model, passes, experts))
    sigmas = Latents(steps.video_sigmas, steps.audio_sigmas)
    solvers = [
        None if part is not None and part.is_whole else kind(each.tolist())
        for part, each in zip(given, sigmas, strict=True)
    ]
    state = _put(given, start, start, sigmas, 0)
    recording, cache = Recording(), None if options.first_block is None else FirstBlockCache(options.first_block)
    begins = phases(*when) if cache is not None else []
    ran = of = 0
    if options.attention is not None and place.sharding.size > 1:
        raise MovaError("attention in 8 bits or sparse is not for clips that several processes share")
    (t, h, w), (pt, ph, pw) = start.video.shape[2:], mova.config.video.patch_size
    lossy, grid = options.attention, (t // pt, h // ph, w // pw)
    for expert, served in groupby(range(len(evaluations)), experts.__getitem__):
        with stage(residency, DENOISE[expert]), nullcontext() if lossy is None else lossy.in_place(mova, grid):
            for number in served:
                level, completes = evaluations[number]
                if passes[number].video != "recorded":
                    # What was kept is freed before more comes.
                    recording = Recording()
                left_out = 0 if cache is None else cache.left_out
                if cache is not None:
                    cache.enter(begins[number])
                if lossy is not None:
                    lossy.enter(level, count)
                velocity = _guided(model, passes[number], state, steps, level, place, recording, observe, cache)
                left_out = 0 if cache is None else cache.left_out - left_out
                there = passes[number].guidance.evaluations
                ran, of = ran + (0 if passes[number].video == "recorded" else there - left_out), of + there
                moved = [
                    x if each is None else each.advance(x, v)
                    for x, v, each in zip(state, velocity, solvers, strict=True)
                ]
                following = evaluations[number + 1].level if number + 1 < len(evaluations) else count
                state = _put(given, Latents(*moved), start, sigmas, following)
                if completes is not None:
                    check_finite(state, completes)
                    if on_step is not None:
                        on_step(Step(completes, expert, state, velocity, (ran, of)))
                    ran = of = 0
    return state


def _check_left_out(mova: Mova, conditions: Conditions, options: LoopOptions) -> None:
    """MovaError where the video tower cannot be left out of steps as the options ask."""
    given = conditions.video is not None and conditions.video.is_whole
    if options.video_every != 1 and not given:
        raise MovaError("the video tower can be left out of steps only where the whole video is given")
    adaptive = options.first_block is not None
    if (options.reused or adaptive) and given:
        raise MovaError(
            "steps of the audio alone (step cache, more audio sigmas) are for videos that are made: for a given one, "
            "video_every says what runs"
        )
    if (options.reused or adaptive or options.video_every != 1) and options.bridge and mova.config.bridge.pooled_adaln:
        raise MovaError("the bridge's pooled variant reads the video at every step: its tower must run in each")


def _check_adaptive(mova: Mova, start: Latents, options: LoopOptions, place: Processes) -> None:
    """MovaError where the video tower cannot be left out by what its first layer says."""
    if options.first_block is None:
        return
    if len(start.video) > 1:
        raise MovaError("the adaptive step cache decides clip by clip: it takes one at a time (batch 1)")
    if place.launch.world > 1:
        raise MovaError("the adaptive step cache is for one process; a planned one serves several")
    if mova.streamed is not None:
        raise MovaError(
            "the adaptive step cache does not say ahead which layers come: with streamed weights take a planned one"
        )


def _guided(
    model: VelocityModel,
    each: Pass,
    state: Latents,
    steps: Steps,
    level: int,
    place: Processes,
    recording: Recording,
    observe: Callable[[Observed], None] | None,
    cache: FirstBlockCache | None,
) -> Latents:
    """The guided velocity at a noise level. recording: what was kept, or an empty one that is filled if need be."""
    found: dict[Branch, Any]
    if each.video == "recorded":
        found = model.evaluate_audio(each.own, state, steps, level, recording)
    else:
        found = model.evaluate(each.own, state, steps, level, recording if each.video == "record" else None, cache)
        if observe is not None:
            observe(Observed(model, level, state, each.guidance, found, recording))
    if each.shared:
        found = all_branches(each.guidance.branches, found, place.branches)
    velocity = Latents(*each.guidance.combine(lambda *branch: found[branch]))
    # Video is gathered, so it is equal in all processes. Audio was computed by each process: make it equal.
    return velocity._replace(audio=place.sharding.broadcast(velocity.audio))


def _with_first_frame(conditions: Conditions, start: Latents) -> Conditions:
    """Conditions whose video has the given image as its latent frame 0, at each step's noise level."""
    channels, frames = start.video.shape[1:3]
    given, image = conditions.video, conditions.condition[:, -channels:].float()
    if given is None:
        first = GivenLatents(image, tuple(frame == 0 for frame in range(frames)), clean=False)
    elif given.clean or given.positions[0]:
        return conditions
    else:
        # A stretch from the clip's beginning is made anew.
        latents = torch.cat([image[:, :, :1], given.latents[:, :, 1:].float()], 2)
        first = replace(given, latents=latents, positions=(True, *given.positions[1:]))
    return replace(conditions, video=first)


def _with_clean_start(conditions: Conditions) -> Conditions:
    """Conditions whose given latents are clean, if they are the beginning of both modalities."""
    video, audio = conditions.video, conditions.audio
    if video is None or audio is None or not (video.is_start and audio.is_start):
        return conditions
    return replace(conditions, video=replace(video, clean=True), audio=replace(audio, clean=True))


def _put(
    given: tuple[GivenLatents | None, GivenLatents | None], state: Latents, start: Latents, sigmas: Latents, level: int
) -> Latents:
    """The state at noise level `level` with what is given in its place."""
    return Latents(
        *(
            x if part is None else part.put(x, noise, sigma[level])
            for part, x, noise, sigma in zip(given, state, start, sigmas, strict=True)
        )
    )


def check_finite(state: Latents, step: int) -> None:
    """MovaError unless the latents after step `step` (from 0) are finite."""
    for name, latents in state._asdict().items():
        if not latents.isfinite().all():
            raise MovaError(
                f"sampling gave {name} latents that are not finite in step {step + 1}; try --dtype float32 or a "
                "smaller scale"
            )
