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
from mova_engine.scores.score_declaration import Score, ScoreColumn
from mova_engine.web.page_text import breakable, number, text
from mova_engine.web.report_page import document, histogram

_WORST = 3
_STYLE = """
.published { background: #f5f6f9; border-left: 4px solid #c4ccd8; padding: .2em 1em; margin: 1.5em 0 }
figure video { width: 100%; background: #000 }
"""


def page(clips: Path, out: Path, scores: Sequence[Score], result: EvaluationResult) -> str:
    """The page's text. Clips are linked by their place relative to `out`, so the two folders move together."""
    count = len(result.rows)
    parts = [
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
    return document(f"Evaluation of {Path(os.path.abspath(clips)).name}", parts, _STYLE)


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
    lines, said = ([], "") if chance is None else ([chance], "; the dashed line is chance")
    drawing = histogram(np.array([value for value, _ in known]), lines, said=said)
    return f"<p>{text(column.name)}{unit}<br>{drawing}</p>"


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
