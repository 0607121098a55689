"""`mova nano clips`: write the embedded data set of bouncing balls that click."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least
from mova_engine.errors import counted, run_cli

ABOUT = "Write the embedded data set: videos of balls whose bounces click, with captions."


@dataclass(frozen=True, kw_only=True)
class ClipsConfig:
    """Which clips, and where."""

    out: Path = field(kw_only=False)
    """Folder to write, new or without clips."""
    clips: int = 768
    """Number of clips."""
    seed: int = 0
    """Seed of the delays and positions."""
    split: Literal["train", "heldout"] = "train"
    """Which pairs of colour and tempo."""
    midway: float = 0.0
    """Share of clips that begin in the middle of the motion, anywhere, instead of with the ball at rest."""
    sizes: tuple[str, ...] = ()
    """Sizes of the clips in turn, WIDTHxHEIGHT or WIDTHxHEIGHTxFRAMES, such as 64x48 48x64x49; default: 48x48x33."""
    scale: int = 1
    """How many times larger pictures are, with all that they show: 2, as large as the films of mova nano films."""

    def __post_init__(self) -> None:
        check_least(self, "", seed=0, scale=1)
        check(0 <= self.midway <= 1, f"midway must lie in 0..1, got {self.midway}")


CLIPS = Command("mova nano clips", ClipsConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a folder of clips."""
    config = CLIPS.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.config.buckets import BucketSettings
    from mova_engine.config.model import get_preset
    from mova_engine.data.synthetic.bounce import SCENE, Scene, generate
    from mova_engine.files.writable import check_writable

    check_writable(config.out, "OUT")
    shapes = BucketSettings(config.sizes).shapes(get_preset("nano").clip) if config.sizes else ()
    scenes = [Scene(shape.width, shape.height, shape.frames) for shape in shapes] or [SCENE]
    rows = generate(
        config.out, config.clips, config.seed, config.split, midway=config.midway, scenes=scenes, scale=config.scale
    )
    sys.stdout.write(f"wrote {counted(len(rows), 'clip')} ({config.split}) to {config.out}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
