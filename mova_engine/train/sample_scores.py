"""Scores of a run's samples, measured beside the training: by `mova eval` in a process of its own, at low priority.

Training waits for it at its end alone. What is found goes into the run's metrics under the step of the samples; a
number that is missing and a program that fails are lines of the log and end nothing. Samples of bouncing balls are
measured by `mova nano sync` too.
"""

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine.config.train import ValidationSettings
from mova_engine.data.metadata import read_metadata
from mova_engine.errors import MovaError, require_package
from mova_engine.files.results import read_result
from mova_engine.ops import resolve
from mova_engine.scores.score_file import chosen_scores
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.weights_folder import WeightsFolder
from mova_engine.train.metrics import read_metrics

# Folder of the reports, beside that of the samples.
SCORES = "scores"
SECONDS = "samples/seconds"
_STEP, _REPORT = "step-", "report.json"
_NICENESS = 10
# What a program gets to end by itself.
_PATIENCE_S = 10.0
_OF_BALLS = "ball bouncing"


@dataclass(frozen=True)
class SampleNumbers:
    """What was found of the samples of one step: values for the metrics, and the same in words."""

    step: int
    values: dict[str, float] = field(default_factory=dict[str, float])
    words: tuple[str, ...] = ()


def sample_folder(samples: Path, step: int) -> Path:
    """Where the samples of a step lie."""
    return samples / f"{_STEP}{step:06d}"


def check_scores(settings: ValidationSettings) -> None:
    """MovaError, before training, for scores that are unknown or that this machine cannot measure."""
    if not settings.scores:
        return
    require_package("pyarrow", "validation.scores")
    runner = ScoreRunner(WeightsFolder(settings.weights, accept_noncommercial=settings.accept_noncommercial))
    for score in chosen_scores(settings.scores, runner)[0]:
        if score.check:
            resolve(score.check)()


class SampleScores:
    """Measures the samples of one step after the other while training goes on.

    folder: for the reports. samples: where the samples of all steps lie.
    """

    def __init__(self, folder: Path, samples: Path, settings: ValidationSettings) -> None:
        self._folder, self._samples, self._settings = folder, samples, settings
        self._steps: queue.Queue[int | None] = queue.Queue()
        self._found: queue.Queue[SampleNumbers] = queue.Queue()
        self._begun = self._told = 0
        self._program: subprocess.Popen[bytes] | None = None
        self._closed = False
        # Held while a program starts, so that `close` sees either none that will start, or one that it can end.
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._measure_all, daemon=True)
        self._thread.start()

    def begin(self, step: int) -> None:
        """Have the samples of a step measured, after those that wait already."""
        self._begun += 1
        self._steps.put(step)

    def begin_lost(self, metrics: Path, last: int) -> None:
        """The samples up to step `last` that the metrics have no scores of: those of a run that was ended."""
        rows = read_metrics(metrics) if metrics.exists() else []
        known = {row["step"] for row in rows if SECONDS in row}
        names = [path.name.removeprefix(_STEP) for path in sorted(self._samples.glob(f"{_STEP}*"))]
        for step in (int(name) for name in names if name.isdecimal()):
            if step <= last and step not in known:
                self.begin(step)

    def found(self) -> Iterator[SampleNumbers]:
        """What was measured since the last call."""
        while not self._found.empty():
            self._told += 1
            yield self._found.get()

    @property
    def waiting(self) -> int:
        """How many steps' samples are not measured yet."""
        return self._begun - self._told

    def rest(self, ended: Callable[[], bool]) -> Iterator[SampleNumbers]:
        """Everything that is still to come, waited for unless `ended()`."""
        while self.waiting and not ended():
            yield from self.found()
            time.sleep(0.05)

    def close(self) -> None:
        """End what is being measured."""
        with self._starting:
            self._closed = True
            program = self._program
        self._steps.put(None)
        if program is not None and program.poll() is None:
            program.terminate()
            try:
                program.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                program.kill()  # it was started where SIGTERM is ignored, or is stuck
        self._thread.join()

    def _measure_all(self) -> None:
        while (step := self._steps.get()) is not None and not self._closed:
            self._found.put(self._measure(step))

    def _measure(self, step: int) -> SampleNumbers:
        """The numbers of one step, or why there are none: nothing is raised."""
        began = time.monotonic()
        values: dict[str, float] = {}
        words: list[str] = []
        for measure in (self._scores, self._bounces):
            try:
                numbers, said = measure(step)
                values |= numbers
                words += said
            except (MovaError, OSError, KeyError, TypeError, ValueError) as error:
                words.append(f"not measured: {error}")
        values[SECONDS] = time.monotonic() - began
        return SampleNumbers(step, values, tuple(words))

    def _scores(self, step: int) -> tuple[dict[str, float], list[str]]:
        out = sample_folder(self._folder, step)
        folder = sample_folder(self._samples, step)
        options = [] if self._settings.weights is None else ["--weights", str(self._settings.weights)]
        options += ["--accept-noncommercial"] if self._settings.accept_noncommercial else []
        self._run(
            out, "eval", str(folder), "--out", str(out), "--workers", "1", *options, "--score", *self._settings.scores
        )
        columns: list[dict[str, Any]] = read_result(out / _REPORT)["columns"]
        return {f"samples/{x['column']}": x["mean"] for x in columns if x["mean"] is not None}, list(
            map(_told, columns)
        )

    def _bounces(self, step: int) -> tuple[dict[str, float], list[str]]:
        """F1 of clicks at bounces, its chance level beside it, of samples whose captions ask for bouncing balls."""
        # Imported late: it takes the better part of a second, and few runs have such samples.
        from mova_engine.scores.bounce_sync import TOLERANCES_MS, named_colour

        folder = sample_folder(self._samples, step)
        if not all(_OF_BALLS in x.caption and named_colour(x.caption) for x in read_metadata(folder)):
            return {}, []
        out = self._folder / f"{_STEP}{step:06d}-bounces.json"
        self._run(out, "nano", "sync", str(folder), "--json", str(out))
        report = read_result(out)["report"]
        within = f"within_{TOLERANCES_MS[0]}_ms"
        found = {
            name: report[sound][within]["f1"]["value"]
            for name, sound in (("sync_f1", "own_sound"), ("sync_f1_chance", "shuffled_sound"))
            if report[sound] is not None
        }
        known = {f"samples/{name}": value for name, value in found.items() if value is not None}
        return known, [f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in found.items()]

    def _run(self, out: Path, *command: str) -> None:
        """Run a command of the engine. MovaError with what it said last where it failed."""
        out.parent.mkdir(parents=True, exist_ok=True)
        with self._starting:
            if self._closed:
                raise MovaError("the run ended before")
            # In a session of its own: Ctrl-C is for the trainer, which ends this process.
            self._program = subprocess.Popen(
                [sys.executable, "-m", "mova_engine", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        os.setpriority(os.PRIO_PROCESS, self._program.pid, _NICENESS)
        said, _ = self._program.communicate()
        if self._program.returncode:
            lines = said.decode(errors="replace").strip().splitlines() or [f"status {self._program.returncode}"]
            raise MovaError(lines[-1].removeprefix("error: "))


def _told(column: dict[str, Any]) -> str:
    """A column of a report in words: its mean, and of how many clips and why where some lack it."""
    mean = "none" if column["mean"] is None else f"{column['mean']:.4g}"
    if column["scored"] == column["asked"]:
        return f"{column['column']} {mean}"
    reasons = "; ".join(column["reasons"])
    return f"{column['column']} {mean} ({column['scored']} of {column['asked']}: {reasons})"
