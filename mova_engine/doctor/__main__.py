"""`mova doctor [--device D] [--json]`: what is wrong with this machine, and what to do about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What is examined."""

    device: str | None = None
    """cpu, cuda or npu; default: the best that is installed or plugged in."""
    folder: Path = Path()
    """Where runs will be written."""
    golden: Path | None = None
    """Recorded cases to reproduce; default: the checkout's, if any."""
    self_test: bool = True
    """Compute something too; without it, look only."""
    json: bool = False
    """Print for machines."""
    trace: bool = False
    """Print the stack of checks that fail unexpectedly."""


DOCTOR = Command("mova doctor", DoctorConfig, "Say what is wrong with this machine, and what to do about it.")


def main(argv: Sequence[str] | None = None) -> int:
    """Examine and print; 0 when the device can be used, 1 when a problem would stop training on it."""
    config = DOCTOR.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.doctor.visit import examine_machine

    return examine_machine(
        config.device,
        config.folder,
        config.golden,
        self_test=config.self_test,
        json=config.json,
        trace=config.trace,
    )


if __name__ == "__main__":
    run_cli(main)
