"""Sound from text alone: the audio tower without the video's and without the bridge, as in its pre-training."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mova_engine.config.stages import DECODE_AUDIO, DENOISE_AUDIO, ENCODE_TEXT
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import LOW_NOISE, Steps
from mova_engine.diffusion.solvers import solver
from mova_engine.errors import MovaError
from mova_engine.inference.clip_generator import FIRST_STEP
from mova_engine.inference.denoising import Step, check_finite, draw_noise
from mova_engine.inference.pipeline import Pipeline
from mova_engine.inference.requests import Request
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.turns import batched
from mova_engine.inference.velocities import Conditions, Latents, Recording, VelocityModel
from mova_engine.memory.residency import stage

# Forms of guidance that need no bridge.
FORMS = ("none", "text")


def check_form(guidance: Guidance) -> None:
    """MovaError for guidance by the bridge, which the audio tower alone does not have."""
    if guidance.form not in FORMS:
        raise MovaError(f"the audio tower alone has no bridge: guidance must be none or text, got {guidance.form}")


def generate_sound(
    pipeline: Pipeline,
    requests: Sequence[Request],
    settings: SampleSettings,
    *,
    batch: int = 1,
    on_step: Callable[[Step], None] | None = None,
    on_stage: Callable[[str], object] = lambda _: None,
) -> Iterator[np.ndarray]:
    """Yield the sound float32 [n] of each request, in order, as long as the pipeline's clips. First frames are not
    read. For a single process. Raises MovaError for guidance by the bridge, and for latents that are not finite.
    """
    if pipeline.processes.launch.world > 1:
        raise MovaError("sound alone is made by one process: leave torchrun out")
    check_form(settings.guidance)
    codecs, residency, shape = pipeline.codecs, pipeline.residency, pipeline.shape
    encoder, vae = codecs.text, codecs.audio
    if encoder is None or vae is None:
        raise MovaError("sound needs a text encoder and an audio codec")
    for some in batched(requests, batch):
        on_stage("encoding words")
        with stage(residency, ENCODE_TEXT):
            text = encoder.encode([request.caption for request in some])
            empty = encoder.encode([settings.negative_prompt]).expand_as(text)
        with stage(residency, DENOISE_AUDIO):
            device = pipeline.device or pipeline.mova.audio_dit.head.head.weight.device
            on_stage(FIRST_STEP)
            latents = _denoise(pipeline, some, text.to(device), empty.to(device), settings, on_step)
        on_stage("decoding")
        with stage(residency, DECODE_AUDIO):
            for each in latents.split(1):
                yield vae.decode(each)[0, 0, : round(shape.duration * shape.sample_rate)].float().cpu().numpy()


@torch.no_grad()
def _denoise(
    pipeline: Pipeline,
    requests: Sequence[Request],
    text: Tensor,
    empty: Tensor,
    settings: SampleSettings,
    on_step: Callable[[Step], None] | None,
) -> Tensor:
    """Clean audio latents [b, 128, l], float32."""
    mova, seeds = pipeline.mova, [request.seed for request in requests]
    audio = draw_noise(mova.config, seeds, pipeline.shape, text.device).audio
    # Of the video there is nothing.
    state = Latents(audio.new_zeros(len(audio), 0), audio)
    levels = settings.noise_levels(pipeline.schedule)
    count, kind = len(levels.experts), solver(settings.solver)
    steps = Steps(
        levels.video_sigmas, levels.audio_sigmas, levels.video_timesteps, levels.audio_timesteps, (LOW_NOISE,) * count
    )
    conditions = Conditions(state.video, text, empty)
    guidance, sharding = settings.guidance, pipeline.processes.sharding
    model = VelocityModel(
        mova, conditions, pipeline.prediction, pipeline.shape.fps, False, pipeline.options.batch_guidance, sharding
    )
    nothing = Recording(dict.fromkeys(model.forwards(guidance.branches)))
    integrator = kind(steps.audio_sigmas.tolist())
    for level, completes in kind.evaluations(count):
        guided = guidance.at(level / count)
        found = model.evaluate_audio(guided.branches, state, steps, level, nothing)
        velocity = Latents(*guided.combine(lambda *branch, found=found: found[branch]))
        state = state._replace(audio=integrator.advance(state.audio, velocity.audio))
        if completes is not None:
            check_finite(state, completes)
            if on_step is not None:
                on_step(Step(completes, LOW_NOISE, state, velocity, (0, 0)))
    return state.audio
