"""`mova nano films`: write raw films of bouncing balls, for `mova curate`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import counted, run_cli

ABOUT = "Write raw films of bouncing balls: letterboxed, cut, with sound that is silent, noisy or off in parts."


@dataclass(frozen=True, kw_only=True)
class FilmsConfig:
    """Which films, and where."""

    out: Path = field(kw_only=False)
    """Folder to write, new or without clips."""
    films: int = 48
    """Number of films, of 30 to 60 seconds."""
    seed: int = 0
    """Seed of their scenes."""

    def __post_init__(self) -> None:
        check_least(self, "", films=1, seed=0)


FILMS = Command("mova nano films", FilmsConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a folder of films."""
    config = FILMS.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.data.synthetic.films import generate_films
    from mova_engine.files.writable import check_writable

    check_writable(config.out, "OUT")
    truths = generate_films(config.out, config.films, config.seed)
    scenes = sum(not scene["card"] for truth in truths for scene in truth["scenes"])
    sys.stdout.write(f"wrote {counted(len(truths), 'film')} with {counted(scenes, 'scene')} to {config.out}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
