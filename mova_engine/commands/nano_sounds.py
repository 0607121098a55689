"""`mova nano sounds`: write the embedded sounds, notes whose pitch and times captions say."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import counted, run_cli

ABOUT = "Write the embedded sounds: notes whose number, pitch, instrument and times captions say, in several formats."


@dataclass(frozen=True, kw_only=True)
class SoundsConfig:
    """Which sounds, and where."""

    out: Path = field(kw_only=False)
    """Folder to write, new or without clips: music, sound and speech, a folder each."""
    clips: int = 768
    """Number of clips, of the three kinds together."""
    seed: int = 0
    """Seed of the order, the levels and the small differences in time."""
    split: Literal["train", "heldout"] = "train"
    """Which combinations of words."""

    def __post_init__(self) -> None:
        check_least(self, "", seed=0)


SOUNDS = Command("mova nano sounds", SoundsConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write folders of sounds."""
    config = SOUNDS.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.data.synthetic.notes import generate_sounds
    from mova_engine.files.writable import check_writable

    check_writable(config.out, "OUT")
    folders = generate_sounds(config.out, config.clips, config.seed, config.split)
    where = ", ".join(folder.name for folder in folders)
    sys.stdout.write(f"wrote {counted(config.clips, 'clip')} ({config.split}) to {where} in {config.out}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
