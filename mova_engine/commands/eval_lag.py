"""`mova eval lag`: the lag between voice and mouth in talking clips."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from mova_engine.config.command import Command
from mova_engine.config.limits import check
from mova_engine.errors import MovaError, run_cli

ABOUT = """Measure the lag between voice and mouth in talking clips.

A line for each file. Status 2 when one could not be measured, after the others.
"""


@dataclass(frozen=True, kw_only=True)
class LagConfig:
    """Which clips are measured."""

    files: tuple[str, ...] = field(kw_only=False)
    """Video files with speech and a visible mouth."""
    fps: float = 24.0
    """Frame rate in which lags are counted."""
    max_lag: int = 12
    """Largest lag looked for, in frames."""

    def __post_init__(self) -> None:
        usable = 0 < self.fps < math.inf and self.max_lag >= 0
        check(usable, f"--fps must be above 0, --max-lag at least 0; got {self.fps} and {self.max_lag}")


LAG = Command("mova eval lag", LagConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lag of each file. Status 2 when one could not be measured, after the others."""
    config = LAG.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.scores.speech_lag import measure_file

    failed = False
    for file in config.files:
        try:
            lag = measure_file(file, config.fps, config.max_lag)
            milliseconds = 1000 * lag.frames / config.fps
            line = f"{file}: lag {lag.frames} frames ({milliseconds:.0f} ms), correlation {lag.score:.2f}"
            sys.stdout.write(line + "\n")
        except MovaError as error:
            failed = True
            sys.stderr.write(f"error: {error}\n")
    return 2 if failed else 0


if __name__ == "__main__":
    run_cli(main)
