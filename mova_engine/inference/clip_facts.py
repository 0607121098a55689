"""What metadata.jsonl says of each clip that was sampled."""

from pathlib import Path

from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.sample import SampleConfig
from mova_engine.diffusion.schedule import Schedule
from mova_engine.inference.given_clip import GivenClip, Window
from mova_engine.inference.prompts.enhanced_prompt import EnhancedPrompt
from mova_engine.inference.sample_settings import SampleSettings
from mova_engine.inference.velocities import Latents


def facts_of_run(
    config: SampleConfig, folder: Path, settings: SampleSettings, schedule: Schedule, lora: list[AdapterSpec]
) -> dict:
    """The entries of every metadata row that say how the clip was made."""
    guidance = settings.guidance
    return {
        "checkpoint": str(folder),
        "steps": settings.count,
        "solver": settings.solver,
        "sigmas": list(settings.sigmas),
        "audio_sigmas": list(settings.audio_sigmas),
        "switch": settings.switch,
        "reused_steps": list(settings.reused),
        "attention": config.attention,
        "exact_steps": config.exact_steps,
        "cache_threshold": settings.first_block,
        "guidance": guidance.form,
        "text_scale": guidance.text_scale,
        "bridge_scale": guidance.bridge_scale,
        "audio_text_scale": guidance.audio_text_scale,
        "audio_bridge_scale": guidance.audio_bridge_scale,
        "guide_from": guidance.begin,
        "guide_until": guidance.end,
        "guidance_rescale": guidance.rescale,
        "negative_prompt": settings.negative_prompt,
        "video_every": config.video_every,
        "seconds": config.seconds,
        "overlap": config.overlap,
        "video_shift": schedule.video_shift,
        "audio_shift": schedule.audio_shift,
        "lora": [{**each._asdict(), "path": str(each.path)} for each in lora],
    }


def facts_of_given(given: GivenClip | None) -> dict:
    """What is said of a clip's given part: of each modality none, all, or all but so many seconds."""
    if given is None:
        return {}
    return {
        f"given_{name}": [kept.begin, kept.end] if isinstance(kept, Window) else kept
        for name, kept in zip(Latents._fields, given.kind, strict=True)
    }


def facts_of_enhanced(found: EnhancedPrompt | None) -> dict:
    """What is said of a clip's prompt, whose own text is the row's caption: the text that the model was given, if it is
    another, and how it was made.
    """
    if found is None:
        return {}
    told = found.as_json()
    for name in ("prompt", "original", "checks", "cached"):
        del told[name]
    return {"enhanced_prompt": found.prompt if found.used == "enhanced" else None, "enhancement": told}
