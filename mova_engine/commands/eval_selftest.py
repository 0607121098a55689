"""`mova eval selftest`: published examples of the scores, computed here: expected, got, bound, verdict."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import MovaError, run_cli, say

ABOUT = """Compute published examples of the scores.

Prints of each number what was published, what this machine gets, and how far apart the two may be. Closed forms and the
networks of installed wheels need nothing; what needs weights or recordings is tried where they are, and otherwise
listed with the place they come from. Ends with status 1 where a number is out of its bound.
"""


@dataclass(frozen=True, kw_only=True)
class EvalSelftestConfig:
    """Where weights and recordings lie."""

    weights: Path | None = None
    """Folder of official weights."""
    accept_noncommercial: bool = False
    """Use weights whose licence forbids commercial use."""
    media: Path | None = None
    """Folder of the examples' recordings; folders in it are searched too."""


SELFTEST = Command("mova eval selftest", EvalSelftestConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where a number missed."""
    config = SELFTEST.parse(argv)
    if config is None:
        return 0
    if config.media is not None and not config.media.is_dir():
        raise MovaError(f"--media {config.media}: no such folder")
    # Imported late, so that help is instant.
    from mova_engine.evaluation.selftest import read_examples, run_examples
    from mova_engine.scores.weights_folder import WeightsFolder

    weights = WeightsFolder(config.weights, accept_noncommercial=config.accept_noncommercial)
    states = Counter[str]()
    for verdict in run_examples(read_examples(), weights, config.media):
        states[verdict.state] += 1
        example = verdict.example
        say(f"{verdict.state:6} {example.name}")
        if verdict.reason:
            say(f"       {verdict.reason}")
        for name, got in verdict.got.items():
            expected = f"expected {example.expected[name]:<12.9g} got {got:<12.9g} bound {example.bound:g}"
            say(f"       {name:18} {expected}")
        if verdict.state == "missed":
            say(f"       source: {example.source}")
    say(f"{states['held']} held, {states['missed']} missed, {states['absent']} not tried")
    return 1 if states["missed"] else 0


if __name__ == "__main__":
    run_cli(main)
