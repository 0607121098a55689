"""`mova bench traffic`: bytes that context parallelism sends, by formula and counted."""

from collections.abc import Sequence
from dataclasses import dataclass

from mova_engine.config.command import Command
from mova_engine.config.limits import check
from mova_engine.errors import run_cli

# The model that is counted has 105 video tokens; more processes would have none.
MOST_COUNTED = 64

ABOUT = """Print what context parallelism sends per rank and training step, beside the reference's.

With --count N it also starts N processes on this machine, runs a small model and counts what they send; status 1 where
a count is not what its formula says.
"""


@dataclass(frozen=True, kw_only=True)
class TrafficConfig:
    """Whose traffic."""

    model: str = "mova-360p"
    """nano, bench-mid, mova-360p or mova-720p."""
    count: int | None = None
    """Start this number of processes and count what they send, with a small model."""

    def __post_init__(self) -> None:
        usable = self.count is None or 2 <= self.count <= MOST_COUNTED
        check(usable, f"--count must lie between 2 and {MOST_COUNTED}, got {self.count}")


TRAFFIC = Command("mova bench traffic", TrafficConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns 1 where a count is not what its formula says."""
    config = TRAFFIC.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.distributed.traffic_table import print_traffic

    return print_traffic(config.model, config.count)


if __name__ == "__main__":
    run_cli(main)
