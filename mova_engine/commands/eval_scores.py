"""`mova eval scores`: computes scores of media files."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from mova_engine.config.command import Command
from mova_engine.config.limits import check
from mova_engine.errors import MovaError, run_cli

ABOUT = """Compute scores of clips.

A line for each file and score. Status 2 when one could not be measured, after the others.
"""


@dataclass(frozen=True, kw_only=True)
class ScoresConfig:
    """Which clips are scored, and by what."""

    files: tuple[str, ...] = field(kw_only=False)
    """Video files with sound."""
    score: tuple[str, ...] = ()
    """Names of scores; default: all."""
    fps: float = 24.0
    """Pictures a second at which clips are read."""

    def __post_init__(self) -> None:
        check(0 < self.fps < math.inf, f"--fps must be above 0, got {self.fps}")


SCORE_FILES = Command("mova eval scores", ScoresConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores of each file. Status 2 when one could not be measured, after the others."""
    config = SCORE_FILES.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.scores.score_file import score_file
    from mova_engine.scores.score_table import SCORES

    failed = False
    for file in config.files:
        try:
            for name, value in score_file(file, config.score, config.fps).items():
                sys.stdout.write(f"{file}: {name} {value:.4g} {SCORES[name].unit}".rstrip() + "\n")
        except MovaError as error:
            failed = True
            sys.stderr.write(f"error: {error}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    run_cli(main)
