"""`--suite NAME`: measure what is missing of a card's suite, for some minutes; the same command goes on.

This process imports no torch and touches no device. It hands units to one that does (`card_worker`), writes each result
file as soon as a unit is done, ends what hangs, and starts another process where one broke.
"""

import argparse
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mova_engine.bench.card.card_suites import (
    PART_NAMES,
    REHEARSAL_PATIENCE,
    RESERVE,
    SUITES,
    CardUnit,
    get_suite,
    next_unit,
    part_named,
    planned_slices,
)
from mova_engine.bench.card.part_files import PartFiles
from mova_engine.errors import MovaError
from mova_engine.files.writable import check_writable

# Exit statuses: all is measured; all is measured or failed; units are missing and the same command goes on.
DONE, FAILED, MISSING = 0, 1, 3
# Seconds that a worker may take to import torch and to find its device.
_START_LIMIT = 300.0
# The folder, in that of the results, of what was chosen on the card.
_MEASURED = "chosen"


def read_options(argv: Sequence[str]) -> argparse.Namespace:
    # Not cyclopts, as for other commands: a rented card's machine need not have it.
    parser = argparse.ArgumentParser(
        prog="mova bench", description="All that is to be measured on a card, in slices; the same command goes on."
    )
    parser.add_argument("--suite", required=True, metavar="|".join(SUITES), help="which card")
    parser.add_argument("--minutes", type=float, default=9.0, help="what this slice may take; default: 9")
    parser.add_argument("--device", help="cpu, or a kind of accelerator; default: the best that is present")
    parser.add_argument("--out", type=Path, help="folder of the result files; default: runs/card/SUITE")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help=f"of {', '.join(PART_NAMES)}")
    parser.add_argument("--retry", action="store_true", help="units that failed once more")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, marked; a CPU always rehearses")
    parser.add_argument("--plan", action="store_true", help="print what each slice is planned to do, and stop")
    options = parser.parse_args(argv)
    if not 0 < options.minutes < 1e4:
        raise MovaError(f"--minutes must be more than 0, got {options.minutes:g}")
    options.out = options.out or Path("runs/card") / options.suite
    return options


class CardWorker:
    """The process that measures, as this one sees it. A context manager."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        answers, theirs = os.pipe()
        words = (options.suite, options.device or "", "rehearse" if options.rehearse else "", str(theirs))
        command = [sys.executable, "-m", "mova_engine.bench.card.card_worker", *words]
        # Where tiles and implementations are looked for that were chosen on this card.
        environment = {**os.environ, "MOVA_TILES": str((folder / _MEASURED).resolve())}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=sys.stderr, pass_fds=[theirs], env=environment, text=True
        )
        os.close(theirs)
        self._answers = os.fdopen(answers, "rb")
        os.set_blocking(answers, False)
        self._received = b""

    def __enter__(self) -> "CardWorker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None, "it was opened"
        self.process.stdin.close()
        self._answers.close()

    def ask(self, unit: CardUnit) -> None:
        assert self.process.stdin is not None, "it was opened"
        self.process.stdin.write(json.dumps([unit.part, unit.name]) + "\n")
        self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None where none came in time. Raises EOFError where the process has ended."""
        until = time.monotonic() + seconds
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not waiting.select(max(0.0, until - time.monotonic())):
                    return None
                more = self._answers.read()
                if not more:
                    raise EOFError
                self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


class SliceRunner:
    """One slice of a suite: what is missing, until the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.suite = options, get_suite(options.suite)
        self._until = time.monotonic() + options.minutes * 60 - RESERVE
        self._worker: CardWorker | None = None
        self._circumstances: dict[str, Any] = {}
        self._part: str | None = None
        self.files: PartFiles | None = None

    @property
    def _left(self) -> float:
        return self._until - time.monotonic()

    def run(self) -> int:
        """Measure; returns DONE, FAILED or MISSING."""
        units = self.suite.units(self.options.only)
        check_writable(self.options.out, "--out")
        (self.options.out / _MEASURED).mkdir(parents=True, exist_ok=True)
        try:
            files = self._open()
            missing, fresh = files.missing(units, self.options.retry), True
            while (unit := next_unit(missing, self._left, fresh)) is not None:
                missing.remove(unit)
                if not self._measure(unit, files, fresh):
                    missing.insert(0, unit)
                    break
                fresh = False
        finally:
            self._close()
        return self._end(files, units)

    def _open(self) -> PartFiles:
        """Start a worker, if there is none; the files are of the kind that it makes."""
        if self._worker is None:
            self._worker = CardWorker(self.options, self.options.out)
            try:
                answer = self._worker.answer(_START_LIMIT)
            except EOFError:
                answer = None
            if answer is None:
                raise MovaError("the process that measures did not start; what it said is above")
            if "refused" in answer:
                raise MovaError(answer["refused"])
            self._circumstances = answer["circumstances"]
            if self.files is None:
                self.files = PartFiles(self.options.out, self.suite.name, answer["mark"])
                self.files.check_device(self._circumstances)
                print(f"{self._circumstances['device_name']}; {answer['mark'] or 'measured'}", flush=True)
        assert self.files is not None, "made with the first worker"
        return self.files

    def _close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.__exit__()

    def _measure(self, unit: CardUnit, files: PartFiles, fresh: bool) -> bool:
        """Measure a unit and record it; False where the slice ended before it did, which is no fault of the unit unless
        it had the whole slice (fresh).
        """
        if part_named(unit.part).apart and self._part not in (None, unit.part):
            self._close()
        self._part = unit.part
        self._open()
        assert self._worker is not None, "just started"
        whole = unit.limit * (REHEARSAL_PATIENCE if files.mark else 1.0)
        limit = min(whole, self._left)
        start = time.monotonic()
        self._worker.ask(unit)
        try:
            answer = self._worker.answer(limit)
        except EOFError:
            status = self._worker.process.wait()
            reason = f"its process ended with status {status} (-9: out of memory, most likely)"
            entry: dict[str, Any] = {"failed": reason}
            entry["seconds"] = round(time.monotonic() - start, 2)
        else:
            if answer is None:
                self._close()
                if limit < whole and not fresh:
                    print(f"{unit.part}, {unit.name}: begins again in the next slice", flush=True)
                    return False
                what = "" if limit == whole else ", all that a slice has: give more --minutes and --retry"
                entry = {"failed": f"not done within {limit:.0f} s{what}", "seconds": round(limit, 2)}
            else:
                entry, self._circumstances = answer["entry"], answer["circumstances"]
        if entry.pop("broken", "failed" in entry and "rows" not in entry):
            self._close()
        files.add(unit, entry, self._circumstances)
        print(f"{unit.part}, {unit.name}: {_outcome(entry)}", flush=True)
        return True

    def _end(self, files: PartFiles, units: list[CardUnit]) -> int:
        from mova_engine.bench.card.card_report import write_card_report

        page = write_card_report(files, self.suite)
        missing = files.missing(units, retry=False)
        failed = [unit for unit in units if "failed" in files.units(unit.part).get(unit.name, {})]
        print(f"{len(units) - len(missing)} of {len(units)} units are done, {len(failed)} of them failed: {page}")
        if missing:
            print(f"missing: {_listed(missing)}; the same command goes on with them")
            return MISSING
        return FAILED if failed else DONE


def _outcome(entry: dict[str, Any]) -> str:
    if "failed" in entry:
        return f"failed: {entry['failed']}"
    if "left_out" in entry:
        return f"left out: {entry['left_out']}"
    return f"{len(entry['rows'])} rows in {entry['seconds']:.1f} s"


def _listed(units: Sequence[CardUnit]) -> str:
    """Parts and how many of their units."""
    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.part] = counts.get(unit.part, 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def plan_text(suite_name: str, minutes: float, only: Sequence[str] = ()) -> str:
    """What each slice is planned to do: lines of text. Planned seconds are no measurements."""
    suite = get_suite(suite_name)
    slices, beyond = planned_slices(suite, minutes, only)
    lines = [f"suite {suite.name}: planned seconds, not measured; {suite.minutes:g} minutes of device time in all"]
    for number, planned in enumerate(slices, 1):
        lines.append(
            f"slice {number}, --minutes {planned.minutes:g}, {planned.seconds:.0f} s: {_listed(planned.units)}"
        )
    if beyond:
        lines.append(f"beyond these minutes, {sum(unit.seconds for unit in beyond):.0f} s: {_listed(beyond)}")
    return "\n".join(lines)


def asks_for_suite(argv: Sequence[str]) -> bool:
    """Whether a command line names a suite."""
    return any(word.partition("=")[0] == "--suite" for word in argv)


def run_card_suite(argv: Sequence[str]) -> int:
    """`mova bench --suite ...`: a slice, or its plan; returns the exit status."""
    options = read_options(argv)
    if options.plan:
        print(plan_text(options.suite, options.minutes, options.only))
        return 0
    return SliceRunner(options).run()
