"""`mova lora extract`: the difference of two models as adapters."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import counted, run_cli


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Which two models, and how near."""

    base: Path
    """The model folder or run that the adapters are to be used with."""
    tuned: Path
    """The model folder or run that they are to turn it into."""
    out: Path
    """The file to write."""
    rank: int = 32
    """Of each layer's update."""
    to: str = "mova-engine"
    """The dialect to write, such as peft, diffusers or comfy; docs/adapters.md lists all."""
    differences: bool = True
    """Keep changes of norms, biases and modulations, in full."""

    def __post_init__(self) -> None:
        check_least(self, "", rank=1)


EXTRACT = Command(
    "mova lora extract", ExtractConfig, "Write what a full fine-tune changed as adapters, the nearest of a rank."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Extract and write; returns 0. Raises MovaError for models of different sizes and for equal ones."""
    config = EXTRACT.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.adapters.dialects import get_dialect
    from mova_engine.adapters.extract import extract
    from mova_engine.adapters.writing import write_adapter

    get_dialect(config.to)
    found = extract(config.base, config.tuned, config.rank, deltas=config.differences)
    written = write_adapter(found.adapter, config.out, config.to)
    sys.stdout.writelines(f"{note}\n" for note in written.notes)
    pairs, full = len(found.adapter.layers), len(found.adapter.deltas)
    layer, error = found.worst
    sys.stdout.write(
        f"{counted(pairs, 'layer')} at rank {config.rank} and {counted(full, 'full difference')} in {config.out}; "
        f"relative error of the layers' change {found.error:.3g}{f', at most {error:.3g} ({layer})' if layer else ''}\n"
    )
    if found.left and not config.differences:
        sys.stdout.write(f"left out: changes of other parameters, of norm {found.left:.3g}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
