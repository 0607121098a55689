"""`python -m benchmarks.collecting`: joining what a ledger has of all units to the table of clips.

Draws a ledger with every number of every clip, and joins it by column, as `mova curate` does, and row by row, in turns,
in CPU seconds, which a busy machine changes less than wall time. First it is checked that both give the same table.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.errors import MovaError, run_cli
from mova_engine.files.results import check_result, write_result

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from curation.collected_rows import collected_rows, drawn_ledger


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--clips", type=int, default=74, help="of a unit; 74 are 10 minutes of MOVA's clips")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "collecting.json")
    given = parser.parse_args(argv)
    check_result(given.out, "--out")
    with tempfile.TemporaryDirectory() as folder:
        collector, units = drawn_ledger(Path(folder), given.units, given.clips, odd=False)
        rows = given.units * given.clips
        table = collector.collected(units).table
        if table.num_rows != rows or not table.equals(collected_rows(collector, units)[0], check_metadata=True):
            raise MovaError("the two ways do not give the same table: no speed is reported")
        sides = (lambda: collector.collected(units), lambda: collected_rows(collector, units))
        pairs = [[processor_seconds(side) for side in sides] for _ in range(given.pairs)]
    columns, by_row = (statistics.median(each) for each in zip(*pairs, strict=True))
    row = {
        "rows": rows,
        "parts": given.units * (2 + len(collector.work.steps.scores)),
        "columns": table.num_columns,
        "by_column_rows_per_cpu_s": rows / columns,
        "by_row_rows_per_cpu_s": rows / by_row,
        "ratio": statistics.median(slow / fast for fast, slow in pairs),
        "ratios": [round(slow / fast, 2) for fast, slow in pairs],
    }
    write_result(given.out, "collecting", circumstances(get_backend("cpu")), option="--out", rows=[row])
    sys.stdout.write(f"{row}\n")
    return 0


if __name__ == "__main__":
    run_cli(main)
