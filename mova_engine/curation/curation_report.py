"""Gathers what a curation's page tells from its folder, and writes the page and the derived order of its filters."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_file import ClipFile, unmeasured
from mova_engine.curation.clip_prints import PRINTS, printed_clips
from mova_engine.curation.curation_page import ColumnDrawing, CurationFacts, curation_page
from mova_engine.curation.dropped_sheets import DroppedSheet, dropped_clips, dropped_sheet
from mova_engine.curation.filter_columns import LABELS, filter_columns
from mova_engine.curation.filter_order import OrderCounter, order_text
from mova_engine.curation.funnel import read_funnel
from mova_engine.curation.stage_seconds import seconds_by_step
from mova_engine.errors import counted
from mova_engine.files.atomic import write_atomic
from mova_engine.scores.score_table import SCORES

PAGE, ORDER = "report.html", "order.txt"


def write_report(out: Path, each: int, say: Callable[[str], object] = lambda line: None) -> CurationFacts:
    """Write report.html and order.txt. each: clips on a filter's sheet; 0: no film is read. say: takes progress.

    Returns what the page tells. MovaError for a folder that is no curation, or is damaged.
    """
    file = ClipFile.open(out)
    judge = file.judging.judge
    seconds, order = seconds_by_step(out), OrderCounter(judge.filters)
    measured, reasons = Counter[str](), dict[str, Counter[str]]()
    scores = [name for name in SCORES if any(column.name in file.names for column in SCORES[name].columns)]
    wanted = {column.name for name in scores for column in SCORES[name].columns} | set(judge.columns)
    for table in file.tables([*sorted(wanted), "reasons"]):
        order.add(table)
        for score in scores:
            measured[score] += table.num_rows - unmeasured(table, score)
        for told in compute().value_counts(table["reasons"]).to_pylist():
            for score, reason in json.loads(told["values"] or "{}").items():
                reasons.setdefault(score, Counter())[reason] += told["counts"]
    funnel = read_funnel(out)
    if PRINTS in seconds:
        measured[PRINTS] = printed_clips(funnel, judge.filters)
    facts = CurationFacts(
        Path(out).resolve().name,
        funnel,
        judge.filters,
        _columns(file),
        measured,
        reasons,
        seconds,
        order.as_given(seconds),
        order.order(seconds),
        _sheets(file, each, say) if each else {},
    )
    write_atomic(out / PAGE, curation_page(facts).encode())
    if seconds and judge.filters:
        write_atomic(out / ORDER, order_text(facts.derived).encode())
    return facts


def _columns(file: ClipFile) -> dict[str, ColumnDrawing]:
    """Every number of the table, one after the other: one column is in memory at a time."""
    filters = file.judging.judge.filters
    bounds: dict[str, list[float]] = {}
    for bound in (bound for each in filters for bound in each.thresholds):
        bounds.setdefault(bound.column, []).append(bound.value)
    labels = {column.name for column in LABELS} - {name for each in filters for name in each.columns}
    known = filter_columns()
    names = [name for name in file.names if name in known and known[name].kind == "number" and name not in labels]
    return {name: ColumnDrawing.of(*_numbers(file, name), bounds.get(name, ())) for name in names}


def _numbers(file: ClipFile, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a column that there are, and of each whether its clip is kept."""
    pc = compute()
    values, kept = [np.zeros(0)], [np.zeros(0, bool)]
    for table in file.tables([name, "verdict"]):
        numbers = table[name].cast("float64")
        there = table.filter(pc.fill_null(pc.is_finite(numbers), False))
        values.append(np.asarray(there[name].cast("float64").to_numpy()))
        kept.append(np.asarray(pc.equal(there["verdict"].cast("string"), "keep").to_numpy(), bool))
    return np.concatenate(values), np.concatenate(kept)


def _sheets(file: ClipFile, each: int, say: Callable[[str], object]) -> dict[str, DroppedSheet]:
    sheets: dict[str, DroppedSheet] = {}
    columns = {one.name: one.columns for one in file.judging.judge.filters}
    for name, rows in dropped_clips(file, each).items():
        if rows:
            say(f"{name}: reads {counted(len(rows), 'clip')} that it drops")
            sheets[name] = dropped_sheet(rows, columns[name], file.out)
    return sheets
