"""The settings of sampling that a command line asks for: steps, solver, guidance, step cache.

`--fast` is a preset of what was measured to be as good in less time (`docs/sampling.md` has the figures): 16 steps of
UniPC are nearer to the exact solution, in pictures and sound, than 50 or 64 of Euler's. A step cache is not in it: as
many passes of the video tower by fewer steps of UniPC are nearer.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.model import MovaConfig
from mova_engine.config.sample import CACHE_FILE, REFERENCE, SampleConfig
from mova_engine.data.text import flaw
from mova_engine.diffusion.guidance import Guidance
from mova_engine.diffusion.schedule import Schedule
from mova_engine.errors import MovaError
from mova_engine.inference.first_block import FirstBlock
from mova_engine.inference.loading import trained
from mova_engine.inference.lossy_attention import LossyAttention
from mova_engine.inference.sample_settings import REFERENCE_NEGATIVE_PROMPT, SampleSettings
from mova_engine.inference.step_cache import key_of, planned
from mova_engine.inference.step_plan import StepPlan

FAST_SOLVER, FAST_STEPS = "unipc", 16


def _not_none(config: SampleConfig, *names: str) -> dict[str, Any]:
    """The named settings that are not None; None leaves a setting to the model."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def attention_of(config: SampleConfig) -> LossyAttention | None:
    """What approximates the video's self-attention; None: it is exact."""
    return None if config.attention == "exact" else LossyAttention(config.attention, config.exact_steps)


def schedule_of(config: SampleConfig, schedule: Schedule) -> Schedule:
    return replace(schedule, **_not_none(config, "video_shift", "audio_shift"))


def sample_settings(config: SampleConfig, defaults: SampleSettings) -> SampleSettings:
    """Return the settings of the command line, completed by a model's own (`defaults`)."""
    guidance = Guidance(config.guidance) if config.guidance else defaults.guidance
    config.check_guidance(guidance.form)
    scales = ("text_scale", "bridge_scale", "audio_text_scale", "audio_bridge_scale")
    named = {"rescale": config.guidance_rescale, "begin": config.guide_from, "end": config.guide_until}
    given = {name: value for name, value in named.items() if value is not None}
    guidance = replace(guidance, **_not_none(config, *scales), **given)
    if config.fast:
        defaults = replace(defaults, solver=FAST_SOLVER, steps=min(defaults.steps, FAST_STEPS))
    settings = replace(
        defaults,
        guidance=guidance,
        solver=config.solver or defaults.solver,
        sigmas=config.sigmas,
        audio_sigmas=config.audio_sigmas,
        switch=config.switch,
        **_not_none(config, "steps"),
    )
    if config.negative_prompt is None:
        return settings
    negative = REFERENCE_NEGATIVE_PROMPT if config.negative_prompt == REFERENCE else config.negative_prompt
    if reason := flaw(negative):
        raise MovaError(f"--negative-prompt {reason}")
    return replace(settings, negative_prompt=negative)


def with_cache(
    config: SampleConfig,
    folder: Path,
    model: MovaConfig,
    settings: SampleSettings,
    lora: Sequence[AdapterSpec],
    say: Callable[[str], object],
) -> SampleSettings:
    """The settings with the step cache that is asked for; `say` is told of it, and of what --fast turned on.

    model: with the shape of the clips. Raises MovaError for a calibration that does not fit the run.
    """
    cache: StepPlan | FirstBlock | None = None
    if config.cache_threshold is not None:
        cache = FirstBlock(config.cache_threshold)
    elif config.cache_speedup > 1:
        cache = _planned(config, config.cache_speedup, folder, model, settings, lora)
    elif config.fast:
        say(f"--fast: solver {settings.solver}, {settings.count} steps")
    if cache is None:
        return settings
    say(cache.words())
    return replace(settings, cache=cache)


def _planned(
    config: SampleConfig,
    speedup: float,
    folder: Path,
    model: MovaConfig,
    settings: SampleSettings,
    lora: Sequence[AdapterSpec],
) -> StepPlan:
    """Which steps reuse the video's velocity."""
    schedule = schedule_of(config, trained(folder).schedule)
    key = key_of(folder, model.clip, settings, schedule, lora, config.attention)
    return planned(cache_file(config), key, speedup, settings, schedule, model.experts)


def cache_file(config: SampleConfig) -> Path:
    """Where the calibration of a step cache is."""
    return config.cache_file or config.checkpoint / CACHE_FILE
