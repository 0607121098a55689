"""`mova lora convert`: adapters from one dialect into another."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mova_engine.config.command import Command, spelled
from mova_engine.errors import counted, run_cli


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """What to convert into what."""

    lora: Path = field(kw_only=False)
    """A file or folder of any dialect, or a LoRA run."""
    to: str
    """The dialect to write, such as peft, diffusers or comfy; docs/adapters.md lists all."""
    out: Path
    """The file to write, or the folder where the dialect has several files."""
    dialect: Annotated[str | None, spelled("--from")] = None
    """What to read it as; default: found out."""
    part: str | None = None
    """What it adapts, where it does not say so: high, low, both, audio or bridge."""
    alpha: float | None = None
    """The adapters' alpha, where their file does not say it."""
    skip_foreign: bool = False
    """Leave out keys that have no place in MOVA."""


CONVERT = Command("mova lora convert", ConvertConfig, "Write adapters in another tool's dialect.")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and write; returns 0. Raises MovaError for a file that cannot be read, or not be held at all."""
    config = CONVERT.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.adapters.dialects import get_dialect
    from mova_engine.adapters.reading import read_adapter
    from mova_engine.adapters.writing import write_adapter

    get_dialect(config.to)
    adapter = read_adapter(
        config.lora,
        part=config.part,
        dialect=config.dialect,
        alpha=config.alpha,
        skip_foreign=config.skip_foreign,
    )
    written, layers = write_adapter(adapter, config.out, config.to), len(adapter.names)
    sys.stdout.writelines(f"{note}\n" for note in (*adapter.notes, *written.notes))
    some = counted(layers, "layer") if written.layers == layers else f"{written.layers} of {counted(layers, 'layer')}"
    sys.stdout.write(f"{some} written as {config.to} to {config.out} (read as {adapter.dialect})\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
