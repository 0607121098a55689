"""A whole media file as scores take it: all its pictures, scaled to a common area, with their sound."""

from pathlib import Path

from mova_engine.config.model import ClipConfig
from mova_engine.data.media.decode import Clip, probe, read_clip

# Pixels of the pictures that are scored, about.
AREA = 144 * 256


def read_whole(path: str | Path, fps: float) -> tuple[Clip, int]:
    """A file's pictures at `fps` a second, of about AREA pixels each, with its sound; and the sound's rate in Hz."""
    info = probe(path)
    # Whole groups of four frames and one, as all clips: at most three frames at the end are left out.
    frames = max(0, int(info.duration * fps + 1e-6) - 1) // 4 * 4 + 1
    height, width = (
        max(16, 16 * round((AREA * side / other) ** 0.5 / 16))
        for side, other in ((info.height, info.width), (info.width, info.height))
    )
    shape = ClipConfig(frames=frames, height=height, width=width, fps=fps)
    return read_clip(path, shape), shape.sample_rate
