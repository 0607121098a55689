"""`mova quantise`: write a model folder with quantised weights."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.config.model import COMPONENTS
from mova_engine.errors import run_cli


@dataclass(frozen=True, kw_only=True)
class QuantiseConfig:
    """Which model, in which format."""

    checkpoint: Path = field(kw_only=False)
    """The model folder, or a training run."""
    weights: Literal["nf4", "int8", "fp8"]
    """The format of the layers' weights: NF4 takes 4.1 bits a weight, int8 and fp8 take 8."""
    out: Path
    """The folder to write."""
    components: tuple[str, ...] = COMPONENTS
    """What is quantised; the others stay as they are."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)


class _Tenths:
    """Progress where there is no terminal: a line for each tenth."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self._started, self._tenth = write, time.monotonic(), 0

    def tell(self, done: int, total: int) -> None:
        if done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            left = (time.monotonic() - self._started) * (total - done) / done
            self._write(f"{done} of {total} layers, {left:.0f} s left\n")


QUANTISE = Command("mova quantise", QuantiseConfig, "Write a model folder with quantised weights.")


def main(argv: Sequence[str] | None = None) -> int:
    """Quantise and write; returns 0. Raises MovaError for folders that do not fit."""
    config = QUANTISE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from mova_engine.memory.quantise_folder import quantise_folder

    console = Console(stderr=True)
    columns = (TextColumn("layers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("layers", total=None)
    lines = _Tenths(sys.stderr.write)

    def progress(done: int, total: int) -> None:
        if console.is_terminal:
            bar.update(task, completed=done, total=total)
        else:
            lines.tell(done, total)

    with bar:
        report = quantise_folder(
            config.checkpoint, config.out, config.weights, config.components, config.clip, progress
        )
    sys.stdout.write(f"{report}\n")
    for name in report.plain:
        sys.stdout.write(f"not quantised, since its sizes do not fit: {name}\n")
    sys.stdout.write(f"written to {config.out}, in {config.weights}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
