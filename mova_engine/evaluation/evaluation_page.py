"""An evaluation as one HTML page that opens without a server: numbers, distributions, and the clips at the ends."""

import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mova_engine.evaluation.benches.bench_page import bench_section
from mova_engine.evaluation.column_summary import ColumnSummary
from mova_engine.evaluation.evaluation_result import EvaluationResult, Row
from mova_engine.evaluation.page_tables import conditions_table, seconds_table, sets_table, skipped_list
from mova_engine.evaluation.page_text import breakable, number, text
from mova_engine.scores.score_declaration import Score, ScoreColumn

_BARS, _WIDTH, _HEIGHT = 24, 260, 56
_WORST = 3
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em; color: #1c2430; }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .35em .7em; vertical-align: top }
th { border-bottom: 2px solid #c4ccd8; font-weight: 600 } td { border-bottom: 1px solid #e4e8ee }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.quiet { color: #677489 } .few { color: #a33 }
svg rect { fill: #5b83c4 } svg line { stroke: #c0392b; stroke-dasharray: 3 2 }
figure { display: inline-block; width: 20em; margin: 0 1em 1em 0; vertical-align: top; overflow-wrap: anywhere }
.wide { overflow-x: auto } body > table { display: block; width: auto; max-width: 100%; overflow-x: auto }
.plots { display: flex; flex-wrap: wrap; gap: 1em 2.5em } .plots p { margin: .3em 0 } details { margin: .6em 0 }
.published { background: #f5f6f9; border-left: 4px solid #c4ccd8; padding: .2em 1em; margin: 1.5em 0 }
figure video { width: 100%; background: #000 }
"""


def page(clips: Path, out: Path, scores: Sequence[Score], result: EvaluationResult) -> str:
    """The page's text. Clips are linked by their place relative to `out`, so the two folders move together."""
    count, title = len(result.rows), text(Path(os.path.abspath(clips)).name)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Evaluation of {title}</title><style>{_STYLE}</style>",
        f"<h1>Evaluation of {title}</h1>",
        f"<p>{count} clips. Intervals hold 95 % of the means of clips drawn anew. A missing number is no zero: it has "
        "a reason. Chance is the mean for sound and pictures of different clips of this set.</p>",
        bench_section(result.bench) if result.bench else "",
        "<h2>All measured files</h2>" if result.bench else "",
        _table(scores, result.summaries),
        sets_table(result.sets),
        skipped_list(result.skipped),
        seconds_table(result.seconds),
        conditions_table(result.facts),
    ]
    for score in scores:
        if not score.columns and not any(row[f"why_{score.name}"] for row in result.rows):
            continue  # it gives numbers of the set alone, and those stand above
        convention = text(result.facts[score.name]["convention"])
        parts += [f"<h2>{text(score.name)} <span class=quiet>({convention} convention)</span></h2>"]
        parts += ["<div class=plots>", *(_plot(column, result) for column in score.columns), "</div>"]
        judged = [column for column in score.columns if column.better]
        parts += [_worst(column, result, clips, out, shown=column is judged[0]) for column in judged]
        parts.append(_reasons(score, result.rows))
    return "\n".join(parts) + "\n"


def _table(scores: Sequence[Score], summaries: Sequence[ColumnSummary]) -> str:
    declared = {column.name: column for score in scores for column in score.columns}
    numbers = "".join(f"<th class=n>{name}" for name in ("clips", "mean", "95 % interval", "chance"))
    rows = [f"<tr><th>number<th>what it says{numbers}<th>better"]
    for summary in summaries:
        column = declared[summary.column]
        interval = "" if summary.interval is None else " to ".join(map(number, summary.interval))
        coverage = "n" if summary.scored == summary.asked else "n few"
        mean = f"{number(summary.mean)} {text(column.unit)}" if summary.mean is not None else "none"
        rows.append(
            f"<tr><td>{breakable(summary.column)}<td>{text(column.about)}"
            f"<td class='{coverage}'>{summary.scored} of {summary.asked}<td class=n>{mean}<td class=n>{interval}"
            f"<td class=n>{number(summary.chance)}<td>{text(column.better)}"
        )
    return "<table>" + "\n".join(rows) + "</table>"


def _known(column: ScoreColumn, result: EvaluationResult) -> list[tuple[float, str]]:
    """The numbers that there are, each with its clip."""
    return [(row[column.name], row["clip"]) for row in result.rows if row[column.name] is not None]


def _plot(column: ScoreColumn, result: EvaluationResult) -> str:
    known = _known(column, result)
    if not known:
        return f"<p>{text(column.name)}: <span class=few>no clip has this number</span></p>"
    chance = next(summary.chance for summary in result.summaries if summary.column == column.name)
    unit = f", {text(column.unit)}" if column.unit else ""
    return f"<p>{text(column.name)}{unit}<br>{_histogram(np.array([value for value, _ in known]), chance)}</p>"


def _worst(column: ScoreColumn, result: EvaluationResult, clips: Path, out: Path, *, shown: bool) -> str:
    """The clips at a number's bad end, which a click unfolds. shown: unfolded from the start, with their pictures."""
    known = _known(column, result)
    if len(known) < 2:
        return ""
    worst = sorted(known, reverse=column.better == "down")[:_WORST]
    players = "".join(_player(value, name, clips, out, pictures=shown) for value, name in worst)
    end = "highest" if column.better == "down" else "lowest"
    opened = " open" if shown else ""
    return f"<details{opened}><summary>{text(column.name)}, {end} first</summary>{players}</details>"


def _histogram(values: np.ndarray, chance: float | None) -> str:
    low, high = float(values.min()), float(values.max())
    if chance is not None:
        low, high = min(low, chance), max(high, chance)
    span = (high - low) or 1.0
    # Not np.histogram, which refuses ranges of less than a rounding error a bar: numbers that differ in the last digit.
    bar_of = ((values - low) / span * _BARS).astype(int).clip(0, _BARS - 1)
    counts = np.bincount(bar_of, minlength=_BARS)
    step = _WIDTH / _BARS
    bars = "".join(
        f"<rect x={i * step:.1f} y={_HEIGHT - _HEIGHT * n / counts.max():.1f} width={step - 1:.1f} "
        f"height={_HEIGHT * n / counts.max():.1f} />"
        for i, n in enumerate(counts)
        if n
    )
    at = ""
    if chance is not None:
        place = f"{(chance - low) / span * _WIDTH:.1f}"
        at = f"<line x1={place} x2={place} y1=0 y2={_HEIGHT} />"
    ends = number(low) if high == low else f"{number(low)} to {number(high)}"
    drawing = f"<svg width={_WIDTH} height={_HEIGHT} role=img aria-label='distribution'>{bars}{at}</svg>"
    said = "; the dashed line is chance" if chance is not None else ""
    return f"{drawing}<br><span class=quiet>{ends}{said}</span>"


def _player(value: float, name: str, clips: Path, out: Path, *, pictures: bool = False) -> str:
    """pictures: the browser fetches the first picture; otherwise nothing before it plays."""
    # Part of an address: "#", "?" and "%" of a name would be read as such.
    place = urllib.parse.quote(Path(os.path.relpath(clips / name, out)).as_posix())
    tag = f"<video controls preload={'metadata' if pictures else 'none'} src='{text(place)}'></video>"
    return f"<figure>{tag}<figcaption>{text(name)}: {number(value)}</figcaption></figure>"


def _reasons(score: Score, rows: Sequence[Row]) -> str:
    told: dict[str, list[str]] = {}
    for row in rows:
        if reason := row[f"why_{score.name}"]:
            told.setdefault(reason, []).append(row["clip"])
    if not told:
        return ""
    lines = [
        f"<li>{text(reason)}: {len(names)} of {len(rows)} <span class=quiet>({text(', '.join(names[:3]))}"
        f"{' and others' if len(names) > 3 else ''})</span>"
        for reason, names in sorted(told.items(), key=lambda item: -len(item[1]))
    ]
    return f"<p>Without a number:</p><ul>{''.join(lines)}</ul>"
