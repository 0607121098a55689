"""`mova eval CLIPS`: measures a folder of clips and reports what was found."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import require_package, run_cli

ABOUT = """Measure every clip of a folder.

Writes a table (scores.parquet), a summary (report.json) and a page (report.html) that opens without a server. Each
clip is decoded once for all scores. What was measured is kept by content: an interrupted run goes on where it was.
`mova eval compare FIRST SECOND` compares two such folders; `mova eval scores` measures single files.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which clips are measured, by what, and where the report goes."""

    clips: Path = field(kw_only=False)
    """Folder of media files; those in folders within it count too."""
    out: Path
    """Folder of the report, new or of an earlier evaluation."""
    score: tuple[str, ...] = ()
    """Names of scores; default: all."""
    workers: int = max(1, (os.cpu_count() or 2) // 2)
    """Clips measured at the same time."""

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)


EVALUATE = Command("mova eval", EvaluateConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a folder as the command line says."""
    config = EVALUATE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.evaluation.evaluation_run import PAGE, check_out, evaluate
    from mova_engine.scores.score_file import chosen_scores

    require_package("pyarrow", "mova eval")
    scores, _ = chosen_scores(config.score)
    check_out(config.out)
    result = evaluate(config.clips, config.out, scores, config.workers, _say)
    for summary in result.summaries:
        mean = "none" if summary.mean is None else f"{summary.mean:.4g}"
        interval = "" if summary.interval is None else " [{:.4g}, {:.4g}]".format(*summary.interval)
        chance = "" if summary.chance is None else f", chance {summary.chance:.4g}"
        sys.stdout.write(f"{summary.column:18} {mean}{interval}{chance} ({summary.scored} of {summary.asked} clips)\n")
    _say(f"report: {config.out / PAGE}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run_cli(main)
