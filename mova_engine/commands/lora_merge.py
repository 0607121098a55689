"""`mova lora merge`: write a checkpoint with adapters merged into its weights."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.adapter_spec import parse_adapter
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.errors import counted, run_cli


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which adapters go into which checkpoint."""

    checkpoint: Path
    """The model folder that the adapters were made for."""
    lora: tuple[str, ...]
    """A LoRA run, or a file or folder of any dialect, each as FILE, FILE:PART, FILE:STRENGTH or FILE:PART:STRENGTH."""
    out: Path
    """The folder to write."""
    alpha: float | None = None
    """The adapters' alpha, where their file does not say it."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of all weights; default: each as the checkpoint has it."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)


MERGE = Command("mova lora merge", MergeConfig, "Write a checkpoint with adapters merged into its weights.")


def main(argv: Sequence[str] | None = None) -> int:
    """Merge and write; returns 0. Raises MovaError for folders or files that do not fit."""
    config = MERGE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.adapters.merge import merge_folder

    specs = [parse_adapter(each, config.alpha) for each in config.lora]

    def warn(line: str) -> None:
        sys.stderr.write(f"warning: {line}\n")

    report = merge_folder(config.checkpoint, specs, config.out, config.clip, config.dtype, warn)
    sys.stdout.write(f"{counted(report.changed, 'layer')} merged into {config.out}; {report}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
