"""`mova eval scores`: computes scores of media files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mova_engine.config.command import Command
from mova_engine.config.measuring import MeasuringOptions
from mova_engine.data.text import shown
from mova_engine.errors import MovaError, run_cli

ABOUT = """Compute scores of clips.

A line for each file and number; a score that the clip does not admit has its reason instead. Status 2 when a file could
not be read, or a named score not be measured, after the others.
"""


@dataclass(frozen=True)
class _Files:
    files: tuple[str, ...]
    """Media files."""


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(MeasuringOptions, _Files):
    """Which clips are scored, and by what."""

    score: tuple[str, ...] = ()
    """Names of scores, or all; default: all but slow ones, if their weights are there."""
    caption: str | None = None
    """What the clips are to show and sound like, for scores of sound and text; default: a .txt beside each."""


SCORE_FILES = Command("mova eval scores", ScoresConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the scores of each file. Status 2 when a file failed or a named score has no number."""
    config = SCORE_FILES.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.scores.opened_runner import open_runner, told_skipped
    from mova_engine.scores.score_file import caption_beside, chosen_scores, score_file
    from mova_engine.scores.score_table import COLUMNS, SCORES

    runner = open_runner(config)
    _, skipped = chosen_scores(config.score, runner)
    failed, read = False, False
    for file in config.files:
        try:
            caption = config.caption if config.caption is not None else caption_beside(file)
            found = score_file(file, config.score, runner=runner, prompt=caption)
        except MovaError as error:
            failed = True
            sys.stderr.write(f"error: {error}\n")
            continue
        read = True
        for name, value in found.values.items():
            sys.stdout.write(f"{shown(file)}: {name} {value:.4g} {COLUMNS[name].unit}".rstrip() + "\n")
        for name, reason in found.reasons.items():
            # Of some scores a clip has a part of the numbers, and a reason for the others.
            failed |= name in config.score and not any(each.name in found.values for each in SCORES[name].columns)
            sys.stderr.write(f"{shown(file)}: {name}: {reason}\n")
    for line in told_skipped(skipped, config.weights) if read else ():
        sys.stderr.write(f"{line}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    run_cli(main)
