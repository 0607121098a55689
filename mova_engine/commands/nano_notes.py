"""`mova nano notes`: whether generated sounds have the pitch and the onsets that their captions ask for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import run_cli

ABOUT = "Measure whether generated sounds have the pitch, the onsets and the number of notes that captions ask for."


@dataclass(frozen=True, kw_only=True)
class NotesConfig:
    """Which sounds are measured."""

    folder: Path = field(kw_only=False)
    """Folder of sound files or videos, with a metadata file for the captions."""
    json: Path | None = None
    """Also write the report to this result file."""
    seed: int = 0
    """Seed of the shuffling and the bootstrap."""


NOTES = Command("mova nano notes", NotesConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure a folder and print the report."""
    config = NOTES.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.backend import get_backend
    from mova_engine.backend.circumstances import circumstances
    from mova_engine.files.results import check_result, write_result
    from mova_engine.scores.bounce_sync import plain
    from mova_engine.scores.note_agreement import format_notes, measure_notes

    if config.json:
        check_result(config.json)
    report = measure_notes(config.folder, config.seed)
    sys.stdout.write(format_notes(report) + "\n")
    if config.json:
        write_result(config.json, "note-agreement", circumstances(get_backend("cpu")), report=plain(report))
    return 0


if __name__ == "__main__":
    run_cli(main)
