"""`mova curate explain OUT CLIP`: why a clip is kept or not."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check
from mova_engine.errors import require_package, run_cli

ABOUT = """Tell everything that is known of one clip.

Its numbers with their ranges or the reasons why they are missing, what each filter says of them and the verdict, what
becomes of its sound, and the seconds that its part of the film took.
"""


@dataclass(frozen=True)
class CurateExplainConfig:
    """Which clip."""

    out: Path
    """Folder that `mova curate` wrote."""
    clip: str
    """The clip's identity as in clips.parquet and metadata.jsonl, or the beginning of it."""

    def __post_init__(self) -> None:
        check(bool(self.clip.strip()), "name a clip by its identity, or by the beginning of it")


EXPLAIN = Command("mova curate explain", CurateExplainConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines."""
    config = EXPLAIN.parse(argv)
    if config is None:
        return 0
    require_package("pyarrow", "mova curate explain")
    # Imported late, so that help is instant.
    from mova_engine.curation.clip_file import ClipFile
    from mova_engine.curation.explanation import explained
    from mova_engine.curation.stage_seconds import seconds_by_step

    file = ClipFile.open(config.out)
    row = file.find(config.clip.strip())
    steps = seconds_by_step(config.out, row["unit"]) if "unit" in row else {}
    lines = explained(row, file.judging, steps.values())
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 0


if __name__ == "__main__":
    run_cli(main)
