"""Smaller forms of a configuration: for checks against float64, and for devices with less memory."""

from dataclasses import replace

from mova_engine.bench.jobs import with_towers
from mova_engine.config.model import ClipConfig, MovaConfig


def small_config(config: MovaConfig) -> MovaConfig:
    """The same widths with three layers and a few tokens: what the references can check in float64 anywhere."""
    layers = min(3, config.video.num_layers), min(2, config.audio.num_layers)
    video, audio = (replace(t, num_layers=n) for t, n in zip((config.video, config.audio), layers, strict=True))
    clip = ClipConfig(frames=5, height=64, width=64, fps=config.clip.fps)
    return replace(with_towers(config, video=video, audio=audio), clip=clip, text_tokens=min(8, config.text_tokens))


def smaller_config(config: MovaConfig, layers: bool) -> MovaConfig | None:
    """A configuration of about half the memory: fewer `layers` where they count, then a shorter clip; or None."""
    video, audio, frames = config.video.num_layers, config.audio.num_layers, config.clip.frames
    if layers and video > 1:
        return with_towers(
            config,
            video=replace(config.video, num_layers=video // 2),
            audio=replace(config.audio, num_layers=max(1, audio // 2)),
        )
    if frames > 1:
        return replace(config, clip=replace(config.clip, frames=(frames - 1) // 8 * 4 + 1))
    return None
