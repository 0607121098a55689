"""`python -m benchmarks.curriculum`: the paper's curriculum in miniature, and what each of its stages brings.

    python -m benchmarks.curriculum --work runs/curriculum --out benchmarks/results/curriculum.json
    python -m benchmarks.curriculum --work runs/curriculum-trial --steps-scale 0.02

Writes raw films, curates them for each phase, trains stage 1 and the joint phases, beside them the same without one of
the stages, samples held-out clips of all, and measures these: `--out`, a result file, and `report.html` in the folder
of the work. Started again it goes on where it was; what is finished is not run again.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.curriculum.figures import observe_all, through_codec
from benchmarks.curriculum.job_board import JobBoard
from benchmarks.curriculum.outcome import outcome_of
from benchmarks.curriculum.page import page_of
from benchmarks.curriculum.stages import SAMPLED, CurriculumScale, jobs, sampled_folder
from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.files.results import check_result, read_result, write_result


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, measure, write the result and its page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curriculum", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/curriculum"), help="folder of films, runs and samples")
    parser.add_argument("--out", type=Path, help="result file; default: curriculum.json in the folder of the work")
    parser.add_argument(
        "--steps-scale", type=float, default=1.0, help="share of the steps, and of the films, of a trial"
    )
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="commands at once, a core each")
    args = parser.parse_args(argv)
    if not args.steps_scale > 0 or args.jobs < 1:
        parser.error("--steps-scale must be positive, and --jobs at least 1")
    out = args.out or args.work / "curriculum.json"
    check_result(out, "--out")
    load = os.getloadavg()[0]
    scale = CurriculumScale.of(args.steps_scale)
    board = JobBoard(jobs(args.work, scale), args.work / "jobs", args.jobs)
    board.run()
    sampled = {each.name: observe_all(sampled_folder(args.work, each)) for each in SAMPLED}
    bound = through_codec(args.work / "heldout")
    facts = outcome_of(args.work, scale, sampled, bound, board.seconds)
    about = circumstances(get_backend("cpu"), load, args.jobs)
    write_result(out, "curriculum", about, option="--out", **facts)
    page = args.work / "report.html"
    write_atomic(page, page_of(read_result(out), args.work).encode())
    sys.stdout.write(f"{out}\n{page}\n")
    return 0


if __name__ == "__main__":
    # As Ctrl-C: the jobs end too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except MovaError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
