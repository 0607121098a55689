"""Compares the cost model with published and measured steps; rows that it was fitted to are listed separately."""

import math
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from mova_engine.plan.report import LABEL
from mova_engine.predict.calibrate import calibrated, fit, leave_one_out, predicted_seconds
from mova_engine.predict.hardware import get_hardware
from mova_engine.predict.memory_use import memory
from mova_engine.predict.published import CALIBRATED, ROWS, PublishedRow


def validation(measured: Sequence[PublishedRow] = ()) -> dict[str, Any]:
    """Every row with its prediction and relative error; leave-one-out errors of the fitted rows; the fitted factors.

    measured: rows of this project's own results; seen by no fit.
    """
    start, fitted = get_hardware(CALIBRATED), [row for row in ROWS if row.fitted]
    left_out = leave_one_out(start, fitted)
    return {
        "label": LABEL,
        "factors": fit(start, fitted).factors,
        "fitted": [_compare(row) | {"left_out": left_out[row.name]} for row in fitted],
        "unseen": [_compare(row) for row in ROWS if not row.fitted],
        "ours": [_compare(row) for row in measured],
        "leave_one_out_error": _rms([left_out[row.name] / row.seconds - 1 for row in fitted]),
    }


def _compare(row: PublishedRow) -> dict[str, Any]:
    seconds = predicted_seconds(row, calibrated(row.hardware))
    return {
        "name": row.name,
        "measured": row.seconds,
        "predicted": seconds,
        "error": seconds / row.seconds - 1,
        "memory": memory(row.run).total,
        "published_memory": row.memory,
    }


def report(found: dict[str, Any]) -> list[str | Table]:
    """The tables to print."""
    factors = ", ".join(f"{name} {value:.2f}" for name, value in found["factors"].items())
    parts: list[str | Table] = [
        "Steps of the reference implementation (published) and of ours on a CPU (benchmarks/results).",
        f"Every predicted figure is a {LABEL}. error: predicted over measured, less 1.",
        "",
        _table("fitted: the cost model learned from these two rows", found["fitted"], left_out=True),
        f"leave-one-out error (root mean square): {found['leave_one_out_error']:.0%}",
        f"fitted factors on the rates that hardware.toml assumes for the {CALIBRATED}: {factors}",
        "",
        _table("predicted unseen: published rows that no fit has used", found["unseen"], memory=True),
        f"root mean square error: {_rms([row['error'] for row in found['unseen']]):.0%}; "
        f"median of the absolute errors: {_median([abs(row['error']) for row in found['unseen']]):.0%}",
    ]
    if found["ours"]:
        parts += ["", _table("predicted unseen: forward and backward, measured by this project", found["ours"])]
    return parts


def _table(title: str, rows: list[dict[str, Any]], left_out: bool = False, memory: bool = False) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True)
    names = ["measured s", "predicted s", "error"]
    names += ["left out s", "error"] if left_out else ["GB predicted", "GB published"] if memory else []
    for name in names:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [row["name"], f"{row['measured']:.2f}", f"{row['predicted']:.2f}", f"{row['error']:+.1%}"]
        if left_out:
            cells += [f"{row['left_out']:.2f}", f"{row['left_out'] / row['measured'] - 1:+.1%}"]
        if memory and row["published_memory"]:
            least, most = (f"{value / 1e9:.0f}" for value in row["published_memory"])
            cells += [f"{row['memory'] / 1e9:.0f}", least if least == most else f"{least}-{most}"]
        table.add_row(*cells)
    return table


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
