"""`mova lora combine`: several adapters as one."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.command import Command
from mova_engine.config.limits import check, check_least
from mova_engine.errors import counted, run_cli


@dataclass(frozen=True, kw_only=True)
class CombineConfig:
    """Which adapters, and what they become."""

    lora: tuple[str, ...] = field(kw_only=False)
    """A LoRA run, or a file or folder of any dialect, each as FILE, FILE:PART, FILE:STRENGTH or FILE:PART:STRENGTH."""
    out: Path
    """The file to write."""
    rank: int | None = None
    """The highest rank of a layer; default: ranks add up, and nothing is lost."""
    alpha: float | None = None
    """Alpha of adapters whose file does not say it."""
    to: str = "mova-engine"
    """The dialect to write, such as peft, diffusers or comfy; docs/adapters.md lists all."""

    def __post_init__(self) -> None:
        check(bool(self.lora), "no adapters are given to combine")
        for each in self.lora:
            parse_adapter(each)
        if self.rank is not None:
            check_least(self, "", rank=1)


COMBINE = Command("mova lora combine", CombineConfig, "Write several adapters with their strengths as one.")


def main(argv: Sequence[str] | None = None) -> int:
    """Combine and write; returns 0. Raises MovaError for adapters that do not go together."""
    config = COMBINE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.adapters.combine import combine
    from mova_engine.adapters.dialects import get_dialect
    from mova_engine.adapters.reading import read_adapter
    from mova_engine.adapters.writing import write_adapter

    get_dialect(config.to)
    specs = [parse_adapter(each, config.alpha) for each in config.lora]
    stack = [(read_adapter(spec.path, part=spec.part, alpha=spec.alpha), spec.strength) for spec in specs]
    combined, error = combine(stack, config.rank)
    written = write_adapter(combined, config.out, config.to)
    sys.stdout.writelines(f"{note}\n" for note in written.notes)
    sys.stdout.write(
        f"{counted(len(stack), 'adapter')} as one of {counted(written.layers, 'layer')} in {config.out}; "
        f"relative error {error:.3g}\n"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
