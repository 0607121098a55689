"""`python -m mova_engine.doctor [--device D] [--json]`: what is wrong with this machine, and what to do about it."""

import os
import sys
from pathlib import Path

from mova_engine import AUTOLOAD, autoload_asked
from mova_engine.backend import NAMES, describe_backend
from mova_engine.backend.health import Finding, Surroundings
from mova_engine.doctor.checks import CHECKS, SELF_TEST
from mova_engine.doctor.examination import Check, Examination, Listener, Report, choose_device, examine
from mova_engine.doctor.findings import as_json, finding_text, verdict, wants_colours
from mova_engine.errors import CommandParser, MovaError, run_cli

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


def main(argv: list[str] | None = None) -> int:
    """Examine and print; 0 when the device can be used, 1 when a problem would stop training on it."""
    # The user's environment, without what a command of the engine puts into it.
    environ = {name: value for name, value in os.environ.items() if name != AUTOLOAD}
    if autoload_asked is not None:
        environ[AUTOLOAD] = autoload_asked
    parser = CommandParser(prog="python -m mova_engine.doctor", description=__doc__)
    parser.add_argument(
        "--device", help=f"one of {', '.join(NAMES)} (default: the best that is installed or plugged in)"
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="where runs will be written (default: here)")
    parser.add_argument("--golden", type=Path, help="recorded cases to reproduce (default: the checkout's, if any)")
    parser.add_argument("--no-self-test", action="store_true", help="look only; compute nothing")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--trace", action="store_true", help="print the stack of checks that fail unexpectedly")
    args = parser.parse_args(argv)
    if args.golden is not None and not args.golden.is_dir():
        raise MovaError(f"--golden {args.golden}: no such folder; it takes a folder of recorded cases")
    around = Surroundings(environ=environ, folder=args.folder)
    backend = describe_backend(args.device) if args.device else choose_device(around)
    golden = args.golden or (_GOLDEN if _GOLDEN.is_dir() else None)
    checks = CHECKS if args.no_self_test else (*CHECKS, *SELF_TEST)
    printer = None if args.json else Printer(wants_colours())
    report = examine(Examination(backend, around, golden), checks, trace=args.trace, listener=printer)
    if printer is None:
        print(as_json(report))
    else:
        printer.close(report)
        if not report.usable and not args.device:
            print(f"--device {' or --device '.join(name for name in NAMES if name != backend.name)} examines another")
    return 0 if report.usable else 1


if __name__ == "__main__":
    run_cli(main)
