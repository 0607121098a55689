"""`mova parity FOLDER [--device D] [--dtype T]`: does this machine reproduce the reference model's numbers?"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """Which cases, on what."""

    folder: Path = field(kw_only=False)
    """Folder of recorded cases, e.g. tests/data/golden."""
    device: str = "cpu"
    """cpu, cuda or npu."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in."""
    ops: tuple[str, ...] = ()
    """Operator choices, OPERATOR=IMPLEMENTATION each, or `reference` for all."""
    quiet: bool = False
    """Print each case's worst tensor and every miss only."""
    keep_reduced_precision: bool = False
    """Leave TF32/HF32 as they are; reported, and a miss where one is on."""


PARITY = Command("mova parity", ParityConfig, "Compare this machine's results with recorded cases of the reference.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run every case of a folder, print a row per tensor, return 1 on any miss."""
    config = PARITY.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.parity.comparison import compare_folder

    return compare_folder(
        config.folder,
        config.device,
        config.dtype,
        config.ops,
        quiet=config.quiet,
        keep_reduced_precision=config.keep_reduced_precision,
    )


if __name__ == "__main__":
    run_cli(main)
