"""The doctor's visit: examine this machine, and print what is found while it is found."""

import os
import sys
from pathlib import Path

from mova_engine import AUTOLOAD, autoload_asked
from mova_engine.backend import NAMES, describe_backend
from mova_engine.backend.health import Finding, Surroundings
from mova_engine.doctor.checks import CHECKS, SELF_TEST
from mova_engine.doctor.examination import Check, Examination, Listener, Report, choose_device, examine
from mova_engine.doctor.findings import as_json, finding_text, verdict, wants_colours
from mova_engine.errors import MovaError

_GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden"


class Printer(Listener):
    """Prints each finding when it is made, so that a check that hangs is seen; on a terminal, what is running too."""

    def __init__(self, colours: bool) -> None:
        self.colours, self.status = colours, sys.stderr.isatty()

    def begins(self, check: Check) -> None:
        if check.loads and self.status:
            print(f"\r\x1b[K{check.name} ...", end="", file=sys.stderr, flush=True)

    def found(self, name: str, finding: Finding) -> None:
        if self.status:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(finding_text(name, finding, self.colours), flush=True)

    def close(self, report: Report) -> None:
        """Print the verdict."""
        print(verdict(report), flush=True)


def examine_machine(
    device: str | None, folder: Path, golden: Path | None, *, self_test: bool, json: bool, trace: bool
) -> int:
    """Examine and print; 0 when the device can be used, 1 when a problem would stop training on it.

    device: None: the best that is installed or plugged in. folder: where runs will be written. golden: recorded cases
    to reproduce; None: the checkout's, if any. self_test: also compute. json: for machines. trace: print the stack of
    checks that fail unexpectedly.
    """
    # The user's environment, without what a command of the engine puts into it.
    environ = {name: value for name, value in os.environ.items() if name != AUTOLOAD}
    if autoload_asked is not None:
        environ[AUTOLOAD] = autoload_asked
    if golden is not None and not golden.is_dir():
        raise MovaError(f"--golden {golden}: no such folder; it takes a folder of recorded cases")
    around = Surroundings(environ=environ, folder=folder)
    backend = describe_backend(device) if device else choose_device(around)
    golden = golden or (_GOLDEN if _GOLDEN.is_dir() else None)
    checks = (*CHECKS, *SELF_TEST) if self_test else CHECKS
    printer = None if json else Printer(wants_colours())
    report = examine(Examination(backend, around, golden), checks, trace=trace, listener=printer)
    if printer is None:
        print(as_json(report))
    else:
        printer.close(report)
        if not report.usable and not device:
            print(f"--device {' or --device '.join(name for name in NAMES if name != backend.name)} examines another")
    return 0 if report.usable else 1
