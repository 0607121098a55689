"""`python -m mova_engine.bench SUITE [--device D] [--dtype T] [--json FILE]`: measure operators or a training step."""

import argparse
import sys
from pathlib import Path

import torch

from mova_engine.backend import NAMES, get_backend
from mova_engine.bench import campaigns, operators, step
from mova_engine.bench.results import circumstances, write_result
from mova_engine.errors import MovaError, run_cli, suggest

SUITES = {"operators": operators, "step": step}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main(argv: list[str] | None = None) -> int:
    """Run one suite, print its rows, write the result file."""
    argv = sys.argv[1:] if argv is None else argv
    if any(word.split("=")[0] == "--suite" for word in argv):
        return campaigns.run(argv, SUITES)
    parser = argparse.ArgumentParser(prog="python -m mova_engine.bench", description=__doc__)
    suites = parser.add_subparsers(dest="suite", metavar="SUITE", required=True)
    for name, module in SUITES.items():
        suite = suites.add_parser(name, help=module.__doc__.split(": ", 1)[1].split("\n")[0])
        suite.add_argument("--device", default="cpu", help=f"one of {', '.join(NAMES)} (default cpu)")
        suite.add_argument("--dtype", default="float32", help=f"{' or '.join(_DTYPES)} (default float32)")
        suite.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
        suite.add_argument("--json", type=Path, help="write the result file here, e.g. benchmarks/results/NAME.json")
        module.add_arguments(suite)
    args = parser.parse_args(argv)
    if args.dtype not in _DTYPES:
        raise MovaError(f"unknown dtype '{args.dtype}'.{suggest(args.dtype, _DTYPES)} Known: {', '.join(_DTYPES)}")
    backend = get_backend(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    found = circumstances(backend)
    print(f"{found['device_name']}; torch {found['torch']}; {args.dtype}; load average {found['load_average']}")
    rows = SUITES[args.suite].run(args, backend, _DTYPES[args.dtype])
    if args.json:
        write_result(args.json, backend, args.suite, dtype=args.dtype, rows=rows)
        print(f"written to {args.json}")
    return 0


if __name__ == "__main__":
    run_cli(main)
