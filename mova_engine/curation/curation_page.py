"""A curation as one HTML page that opens without a server: the funnel, what it took, and what each filter drops."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mova_engine.curation.dropped_sheets import DroppedSheet
from mova_engine.curation.filter_columns import filter_columns
from mova_engine.curation.filter_expression import FilterExpression
from mova_engine.curation.filter_order import PlacedFilter, clip_seconds
from mova_engine.curation.funnel import FilterCounts, Funnel
from mova_engine.curation.stage_seconds import StepSeconds
from mova_engine.curation.unit_steps import CUT, DECODE
from mova_engine.errors import counted
from mova_engine.predict.curation_cost import DAY
from mova_engine.web.page_text import breakable, number, text
from mova_engine.web.report_page import document, histogram, titled_table

# Share of the numbers at each end that a drawing leaves to its last bar.
_TAILS = 0.005
_REASONS = 6
_STYLE = """
svg { overflow: visible } svg rect { fill: #c4ccd8 } svg rect.kept { fill: #5b83c4 }
code { background: #f0f2f5; padding: .1em .3em }
.bar { background: #e4e8ee; height: .9em; width: 14em; margin-top: .3em } .bar i { display: block; height: 100% }
.bar i { background: #5b83c4 } .sheet { max-width: 100%; display: block; margin: .6em 0 }
ol { margin: .3em 0; font-size: .9em }
"""


@dataclass(frozen=True)
class ColumnDrawing:
    """How a column's numbers lie, as HTML. clips: that have the number."""

    html: str
    clips: int

    @classmethod
    def of(cls, values: np.ndarray, kept: np.ndarray, bounds: Sequence[float]) -> "ColumnDrawing":
        """values: finite numbers; kept: of each whether its clip is kept; bounds: thresholds of filters."""
        if not values.size:
            return cls("", 0)
        said = f"; {counted(values.size, 'clip')}"
        return cls(histogram(values, sorted(set(bounds)), chosen=kept, tails=_TAILS, said=said), values.size)


@dataclass(frozen=True)
class CurationFacts:
    """What the page tells. columns: how their numbers lie. measured: {score: clips of which it was measured}. reasons:
    {score: {why it gives no number: clips}}. given, derived: the run's order, and the one that would take least.
    sheets: {filter: some of what it drops}.
    """

    name: str
    funnel: Funnel
    filters: Sequence[FilterExpression]
    columns: Mapping[str, ColumnDrawing]
    measured: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, int]]
    seconds: Mapping[str, StepSeconds]
    given: Sequence[PlacedFilter]
    derived: Sequence[PlacedFilter]
    sheets: Mapping[str, DroppedSheet]


def curation_page(facts: CurationFacts) -> str:
    """The page's text."""
    funnel = facts.funnel
    unknown = funnel.verdicts["unknown"]
    unsure = (
        f", {counted(unknown, 'clip')} unknown: a number is missing that a filter wants, and none drops them"
        if unknown
        else ""
    )
    parts = [
        f"<p>{_hours(funnel.films.seconds)} of {counted(funnel.films.films, 'film')} became "
        f"{counted(funnel.clips, 'clip')}; {counted(funnel.verdicts['keep'], 'clip')} of "
        f"{_hours(funnel.seconds['keep'])} are kept{unsure}.</p>",
        _funnel_table(funnel),
        _kinds_table(funnel),
        _seconds_table(facts),
        _order_table(facts),
        "<h2>What each filter drops</h2><p>Grey bars are all clips with the number, blue ones those that are kept; "
        "dashed lines are thresholds. Pictures are drawn at random from what the filter drops, with their sound.</p>",
    ]
    for counts, each in zip(funnel.filters, facts.filters, strict=True):
        parts.append(_filter_section(counts, each, facts))
    shown = {name for each in facts.filters for name in each.columns}
    others = {name: drawing for name, drawing in facts.columns.items() if name not in shown}
    plots = [_plot(name, drawing) for name, drawing in others.items() if drawing.clips]
    if plots:
        parts += ["<h2>Other numbers</h2><div class=plots>", *plots, "</div>"]
    if without := [breakable(name) for name, drawing in others.items() if not drawing.clips]:
        parts.append(f"<p class=quiet>Of no clip: {', '.join(without)}.</p>")
    parts.append(_reasons(facts.reasons))
    return document(f"Curation {facts.name}", parts, _STYLE)


def _funnel_table(funnel: Funnel) -> str:
    rows = ["<tr><th>stage<th>keeps what is<th class=n>clips in<th class=n>time in<th class=n>dropped<th class=n>share"]
    rows[0] += "<th class=n>undecided<th>clips left"
    films = funnel.films
    failed = f"{films.failed} of {films.units} parts of films failed" if films.failed else ""
    rows.append(
        f"<tr><td>films<td><span class=few>{failed}</span><td class=n>{counted(films.films, 'film')}"
        f"<td class=n>{_hours(films.seconds)}<td><td><td><td>"
    )
    clips = funnel.clips
    for each in funnel.filters:
        left = each.clips - each.dropped
        rows.append(
            f"<tr><td>{text(each.name)}<td><code>{text(each.text)}</code><td class=n>{each.clips}"
            f"<td class=n>{_hours(each.seconds)}<td class=n>{each.dropped}<td class=n>{each.drop_rate:.1%}"
            f"<td class=n>{each.unknown or ''}<td>{_bar(left / clips if clips else 0)}"
        )
    kept = funnel.verdicts["keep"]
    rows.append(
        f"<tr><td><b>kept</b><td><td class=n><b>{kept}</b><td class=n><b>{_hours(funnel.seconds['keep'])}</b>"
        f"<td><td class=n>{kept / clips if clips else 0:.1%}<td><td>{_bar(kept / clips if clips else 0)}"
    )
    return titled_table("Funnel", rows)


def _kinds_table(funnel: Funnel) -> str:
    rows = ["<tr><th>kind<th class=n>clips<th class=n>kept<th class=n>dropped<th class=n>unknown"]
    for kind, verdicts in sorted(funnel.kinds.items()):
        cells = "".join(f"<td class=n>{verdicts.get(verdict, 0)}" for verdict in ("keep", "drop", "unknown"))
        rows.append(f"<tr><td>{text(kind)}<td class=n>{sum(verdicts.values())}{cells}")
    return titled_table("Kinds of clips", rows)


def _seconds_table(facts: CurationFacts) -> str:
    """Hours of source that a core, or a GPU, does in a day; of a score with the clips of which it was measured."""
    if not facts.seconds:
        return "<h2>What it took</h2><p class=quiet>No timings are in the folder.</p>"
    rows = [
        "<tr><th>stage<th class=n>clips<th class=n>seconds a clip<th class=n>seconds in all"
        "<th class=n>hours of source<br>a core-day<th class=n>hours of source<br>a GPU-day<th>filters: share dropped"
    ]
    clips, film = facts.funnel.clips, facts.funnel.films.seconds
    read = max((facts.measured.get(step, 0) for step in facts.seconds), default=0)
    for each in facts.seconds.values():
        ran = {CUT: clips, DECODE: read}.get(each.step) or facts.measured.get(each.step, each.clips)
        taken = each.per_clip * ran
        rate = "" if not taken else number(film / 3600 / (taken / DAY))
        core, gpu = (rate, "") if each.device == "cpu" else ("", rate)
        drops = ", ".join(
            f"{counts.name}: {counts.drop_rate:.1%}"
            for counts, one in zip(facts.funnel.filters, facts.filters, strict=True)
            if each.step in one.scores
        )
        what = {CUT: "cut, with the numbers of the same pass", DECODE: "read clips for scores"}.get(
            each.step, each.step
        )
        rows.append(
            f"<tr><td>{text(what)}<td class=n>{ran}<td class=n>{each.per_clip:.3f}<td class=n>{taken:.1f}"
            f"<td class=n>{core}<td class=n>{gpu}<td>{text(drops)}"
        )
    return titled_table("What it took", rows) + (
        "<p class=quiet>Seconds of workers, each of one thread, as they were on their machine: others that ran beside "
        "them made them longer. A score's hours of source count what earlier filters spared it.</p>"
    )


def _order_table(facts: CurationFacts) -> str:
    if not facts.seconds or len(facts.filters) < 2:
        return ""
    now, best = clip_seconds(facts.given), clip_seconds(facts.derived)
    rows = [
        "<tr><th>filter<th class=n>seconds of a clip that comes<th class=n>share dropped"
        "<th class=n>seconds for each<br>clip that is dropped<th class=n>share of clips that come"
    ]
    for each in facts.derived:
        rank = "never" if each.rank == float("inf") else number(each.rank)
        rows.append(
            f"<tr><td>{text(each.name)}<td class=n>{each.seconds:.3f}<td class=n>{each.drops:.1%}<td class=n>{rank}"
            f"<td class=n>{each.comes:.1%}"
        )
    same = [each.name for each in facts.derived] == [each.name for each in facts.given]
    said = (
        "It is the order of this run."
        if same
        else f"This run's order takes {now:.3f} s a clip, this one {best:.3f} s. <code>mova curate</code> uses it "
        "with <code>--order order.txt</code>; verdicts stay the same."
    )
    return titled_table("The order that measures least", rows) + f"<p>{said}</p>"


def _filter_section(counts: FilterCounts, each: FilterExpression, facts: CurationFacts) -> str:
    plots = [_plot(name, facts.columns[name]) for name in each.columns if name in facts.columns]
    sheet = facts.sheets.get(each.name, DroppedSheet())
    shown = ""
    if sheet.picture:
        titles = "".join(f"<li>{text(title)}" for title in sheet.titles)
        picture = f"<img class=sheet alt='some of what {text(each.name)} drops' src='{sheet.picture}'>"
        shown = f"{picture}<ol class=quiet>{titles}</ol>"
    unreadable = [f"<p class=few>{text(reason)}</p>" for reason in sheet.unreadable]
    head = f"<h3>{text(each.name)} <code>{text(each.text)}</code></h3>"
    unsure = f", cannot decide {counts.unknown}" if counts.unknown else ""
    told = f"<p>drops {counts.dropped} of {counted(counts.clips, 'clip')} ({counts.drop_rate:.1%}){unsure}</p>"
    return "\n".join([head, told, "<div class=plots>", *plots, "</div>", shown, *unreadable])


def _plot(name: str, drawing: ColumnDrawing) -> str:
    column = filter_columns()[name]
    unit = f", {text(column.unit)}" if column.unit else ""
    head = f"<b>{breakable(name)}</b>{unit} <span class=quiet>{text(column.about)}</span>"
    drawn = f"<br>{drawing.html}" if drawing.clips else ": <span class=few>no clip has this number</span>"
    return f"<p style='max-width: 20em'>{head}{drawn}</p>"


def _reasons(reasons: Mapping[str, Mapping[str, int]]) -> str:
    if not reasons:
        return ""
    rows = ["<tr><th>score<th>why it gives no number<th class=n>clips"]
    for score, told in sorted(reasons.items()):
        ranked = sorted(told.items(), key=lambda item: (-item[1], item[0]))
        for reason, clips in ranked[:_REASONS]:
            rows.append(f"<tr><td>{text(score)}<td>{text(reason)}<td class=n>{clips}")
        if len(ranked) > _REASONS:
            rest = sum(clips for _, clips in ranked[_REASONS:])
            rows.append(
                f"<tr><td>{text(score)}<td class=quiet>{len(ranked) - _REASONS} other reasons<td class=n>{rest}"
            )
    return titled_table("Numbers that are missing", rows)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _bar(share: float) -> str:
    return f"<div class=bar><i style='width: {share:.1%}'></i></div>"
