"""`mova describe`: a model's parameters and FLOPs per component."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Which model, for which clips."""

    model: str = field(kw_only=False)
    """nano, bench-mid, mova-360p, mova-720p, a model folder or a training run."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)


DESCRIBE = Command(
    "mova describe", DescribeConfig, "Print a model's parameters and FLOPs per component, and how a folder stores them."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a preset or a checkpoint folder; returns 0. Raises MovaError if there is no such model."""
    config = DESCRIBE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.model_tables import describe, named_model, stored_weights

    sizes, folder = named_model(config.model, config.clip)
    stored = "" if folder is None else f"\n{stored_weights(folder)}\n"
    sys.stdout.write(f"{describe(sizes)}\n{stored}")
    return 0


if __name__ == "__main__":
    run_cli(main)
