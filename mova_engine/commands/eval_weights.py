"""`mova eval weights DIR`: what a folder of networks' weights holds, and which scores that leaves."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import run_cli, say

ABOUT = """Check a folder of weights for scores.

A line for each file that scores know: found, missing, wrong hash (another file than the published one, which fits its
network) or wrong content (names or shapes of tensors differ), with its licence; then a line for each score, whether it
can be measured. Nothing is downloaded. Status 2 when a file has wrong content.
"""


@dataclass(frozen=True, kw_only=True)
class EvalWeightsConfig:
    """Which folder is checked."""

    folder: Path = field(kw_only=False)
    """Folder of files under their published names."""
    accept_noncommercial: bool = False
    """Count weights whose licence forbids commercial use as usable."""


CHECK_WEIGHTS = Command("mova eval weights", EvalWeightsConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the folder holds. Status 2 when a file has wrong content."""
    config = CHECK_WEIGHTS.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.scores.weights_folder import WeightsFolder
    from mova_engine.scores.weights_report import FileReport, report_files, report_scores

    folder = WeightsFolder(config.folder, accept_noncommercial=config.accept_noncommercial)
    files: dict[str, FileReport] = {}
    for each in report_files(folder):
        files[each.entry.name] = each
        digest = f" sha256 {each.sha256}" if each.sha256 else ""
        detail = f" ({each.detail})" if each.detail else ""
        say(f"{each.state:13} {each.file or each.entry.files[0]}{digest}{detail}")
        if each.state == "missing":
            size = "" if each.entry.size is None else f", {each.entry.size:,} bytes"
            say(f"{'':13} {each.entry.about}; {each.entry.source}{size}")
        say(f"{'':13} licence: {each.entry.licence}; {_commercial(each.entry.commercial)}")
    say("")
    for score in report_scores(folder, files):
        say(f"{score.name:15} {score.reason or f'can be measured ({score.source})'}")
    return 2 if any(each.state == "wrong content" for each in files.values()) else 0


def _commercial(allowed: bool | None) -> str:
    if allowed is None:
        return "whether commercial use is allowed is not stated"
    return "commercial use allowed" if allowed else "commercial use not allowed (--accept-noncommercial)"


if __name__ == "__main__":
    run_cli(main)
