"""`mova lora inspect`: what a file of adapters holds."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Which file, and how much of it."""

    lora: Path = field(kw_only=False)
    """A file or folder of any dialect, or a LoRA run."""
    dialect: str | None = None
    """What to read it as; default: found out."""
    part: str | None = None
    """What it adapts, where it does not say so: high, low, both, audio or bridge."""
    alpha: float | None = None
    """The adapters' alpha, where their file does not say it."""
    layers: bool = False
    """A line for each layer."""
    skip_foreign: bool = False
    """Leave out keys that have no place in MOVA."""


INSPECT = Command(
    "mova lora inspect", InspectConfig, "Print what adapters hold: dialect, base, layers, ranks, alphas, norms."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; returns 0. Raises MovaError for a file that cannot be read."""
    config = INSPECT.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.adapters.form import Adapter, AlphaMissing, resolved
    from mova_engine.adapters.inspection import report
    from mova_engine.adapters.reading import read_unresolved

    def read(alpha: float | None) -> Adapter:
        return read_unresolved(config.lora, dialect=config.dialect, alpha=alpha, skip_foreign=config.skip_foreign)

    try:
        adapter = read(config.alpha)
    except AlphaMissing:
        adapter = read(1.0)
        adapter = replace(adapter, notes=(*adapter.notes, "alpha is not stated, and is 1 in this report; give --alpha"))
    if config.part is not None:
        adapter = resolved(adapter, config.part, config.lora)
    sys.stdout.write(report(adapter, config.lora, config.layers) + "\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
