"""`mova nano sync`: how well clicks and bounces of generated clips agree."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import run_cli

ABOUT = "Measure how well clicks and bounces of generated clips agree: F1, delays, colours, with intervals."


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Which clips are measured."""

    folder: Path = field(kw_only=False)
    """Folder of mp4 files, with a metadata file for the captions."""
    json: Path | None = None
    """Also write the report to this result file."""
    seed: int = 0
    """Seed of the shuffling and the bootstrap."""


SYNC = Command("mova nano sync", SyncConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a folder and print the report."""
    config = SYNC.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.backend import get_backend
    from mova_engine.backend.circumstances import circumstances
    from mova_engine.files.results import check_result, write_result
    from mova_engine.scores.bounce_sync import format_report, measure, plain

    if config.json:
        check_result(config.json)
    report = measure(config.folder, config.seed)
    sys.stdout.write(format_report(report) + "\n")
    if config.json:
        write_result(config.json, "bounce-sync", circumstances(get_backend("cpu")), report=plain(report))
    return 0


if __name__ == "__main__":
    run_cli(main)
