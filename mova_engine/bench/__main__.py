"""`python -m mova_engine.bench COMMAND`: measure, checked first; make the tables; compare two result files."""

import argparse
import os
import sys
from pathlib import Path

import torch

from mova_engine.backend import NAMES, get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench import campaigns, compare, result_tables
from mova_engine.bench.candidates import DTYPES, parse_dtype
from mova_engine.bench.suites import SUITES
from mova_engine.config.limits import check_threads
from mova_engine.errors import CommandParser, run_cli
from mova_engine.files.results import check_result, write_result

# Commands that read result files instead of measuring.
READERS = {"report": result_tables, "compare": compare}


def main(argv: list[str] | None = None) -> int:
    """Run one suite, print its rows, write the result file; or read result files."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] == "--suite" for word in argv):
        return campaigns.run(argv, SUITES)
    suites = "--suite NAME runs several measurements in a row into one file, after a check of parity; known: "
    epilog = suites + ", ".join(campaigns.CAMPAIGNS)
    parser = CommandParser(prog="python -m mova_engine.bench", description=__doc__, epilog=epilog)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, suite in SUITES.items():
        command = commands.add_parser(name, help=suite.help)
        command.add_argument("--device", default="cpu", help=f"one of {', '.join(NAMES)} (default cpu)")
        command.add_argument("--dtype", default="float32", help=f"{' or '.join(DTYPES)} (default float32)")
        command.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
        command.add_argument("--json", type=Path, help="write the result file here, e.g. benchmarks/results/NAME.json")
        suite.add_arguments(command)
    for name, module in READERS.items():
        module.add_arguments(commands.add_parser(name, help=module.__doc__.split(": ", 1)[1].split("\n")[0]))
    args = parser.parse_args(argv)
    if args.command in READERS:
        return READERS[args.command].run(args)
    return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    dtype, backend = parse_dtype(args.dtype), get_backend(args.device)
    if args.json:
        check_result(args.json)
    check_threads(args.threads)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    print(f"{backend.describe()}; torch {torch.__version__}; {args.dtype}; load average {load:.2f}")
    # float32 is to mean float32, for the check as for the time.
    with backend.full_precision():
        rows = SUITES[args.command].run(args, backend, dtype)
    if args.json:
        processes = max((row.get("processes", 1) for row in rows), default=1)
        write_result(
            args.json,
            args.command,
            circumstances(backend, load, processes),
            dtype=args.dtype,
            rows=rows,
        )
        print(f"written to {args.json}")
    return 0


if __name__ == "__main__":
    run_cli(main)
