"""A run's metrics (means over steps, in metrics.jsonl and TensorBoard) and its progress bar or lines."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mova_engine.config.train import LogSettings
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

METRICS = "metrics.jsonl"
# Rows after the step that a run resumes from are moved to this file.
REPLACED = "metrics_replaced.jsonl"
EXPERTS = ("high_noise", "low_noise")
TENSORBOARD = "tensorboard"


class Meter:
    """Running means of named values. Its state is saved, so that a resumed run reports the same means."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Count one observation of each value."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means since the last call, and reset them."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain values for JSON."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class MetricsLog:
    """Writes rows to `folder`/metrics.jsonl and to TensorBoard.

    resumed_step: rows after this step, from a run that was killed after its last checkpoint, are moved to
    metrics_replaced.jsonl.
    """

    def __init__(self, folder: Path, settings: LogSettings, resumed_step: int) -> None:
        self.path = folder / METRICS
        self._drop_after(resumed_step)
        self.board = None
        if settings.tensorboard:
            # Imported here: it takes a second, which a command line that only prints its settings need not wait for.
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise MovaError(f"log.tensorboard: {error}; repair it, or give --log.no-tensorboard") from error

            self.board = SummaryWriter(str(folder / TENSORBOARD), purge_step=resumed_step or None)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one row. Values that are not finite are written as null, because JSON has no NaN."""
        row = {"step": step} | {name: _rounded(value) for name, value in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush everything."""
        if self.board is not None:
            self.board.close()

    def _drop_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept, dropped = [], []
        for line, row in _lines(self.path):
            (kept if row is not None and row["step"] <= step else dropped).append(line.rstrip("\n") + "\n")
        if not dropped:
            return
        # In this order: if the process is killed in between, rows are in both files, but never lost.
        with (self.path.parent / REPLACED).open("a", encoding="utf-8") as file:
            file.writelines(dropped)
            file.flush()
            os.fsync(file.fileno())
        write_atomic(self.path, "".join(kept).encode())


class NoLog:
    """The log of processes other than the first: it writes nothing."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl. An incomplete last line, from a killed process, is skipped."""
    rows = []
    for _, row in _lines(path):
        if row is None:
            break
        rows.append(row)
    return rows


def check_metrics(path: Path) -> None:
    """Raise MovaError if the file exists and holds anything but rows of metrics. The last line may be incomplete."""
    if not path.exists():
        return
    try:
        found = _lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise MovaError(f"{path} cannot be read: {error}") from error
    for number, (_, row) in enumerate(found, 1):
        if row is None and (number < len(found) or number == 1):
            raise MovaError(f"{path}: line {number} is no row of metrics: move the file away, or give another --out")


def _lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Each line and the row that it holds; None for a line that holds no row."""
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        found.append((line, row if isinstance(row, dict) and isinstance(row.get("step"), int) else None))
    return found


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    # Nine digits represent a float32 value exactly.
    return float(f"{value:.9g}") if math.isfinite(value) else None


class Reporter:
    """Prints a run's progress: at a terminal a progress bar with the remaining time, else plain lines."""

    def __init__(self, steps: int, start: int, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, soft_wrap=True)
        self.steps, self.start, self.began = steps, start, time.monotonic()
        self.bar = None
        if self.console.is_terminal:
            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
            times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
            self.bar = Progress(*columns, *times, console=self.console)
            self.task = self.bar.add_task("training", total=steps, completed=start, loss="")

    def __enter__(self) -> "Reporter":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(text)

    def advance(self, step: int, row: Mapping[str, Any] | None = None) -> None:
        """Report that `step` steps are done. row: the metrics of the last steps, if they are due."""
        losses = (
            "" if row is None else " ".join(f"{k} {row[f'loss/{k}']:.4f}" for k in _MODALITIES if f"loss/{k}" in row)
        )
        if self.bar is not None:
            self.bar.update(self.task, completed=step)
            if losses:
                self.bar.update(self.task, loss=losses)
        elif row is not None:
            left = (time.monotonic() - self.began) / (step - self.start) * (self.steps - step)
            rate = f"{1000 * row['seconds/step']:.0f} ms/step"
            self.say(f"step {step}/{self.steps}  {losses}  lr {row['lr']:.2e}  {rate}  {duration(left)} left")


_MODALITIES = ("video", "audio")


def duration(seconds: float) -> str:
    """`75` -> "1:15"; `3675` -> "1:01:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
