"""`python -m mova_engine.bench`: as `mova bench`; a card's suite also where PyYAML and cyclopts are not installed."""

import sys
from collections.abc import Sequence

from mova_engine.bench.card.slice_runner import asks_for_suite, run_card_suite
from mova_engine.errors import run_cli

# Where the options of measurements are declared, for the completion of shells.
SETTINGS = "mova_engine.bench.settings"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a card's suite, or a measurement as `mova bench` does."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if asks_for_suite(argv):
        return run_card_suite(argv)
    from mova_engine.bench.measurement_command import run_measurement

    return run_measurement(argv)


if __name__ == "__main__":
    run_cli(main)
