"""The report of votes as one HTML page that opens without a server."""

import html
from collections.abc import Mapping, Sequence

from mova_engine.evaluation.votes.rater_checks import RaterSummary
from mova_engine.evaluation.votes.strength_intervals import shown_kinds
from mova_engine.evaluation.votes.vote_analysis import QuestionResult
from mova_engine.evaluation.votes.win_rates import WinRate

_WIDTH, _ROW, _NAME, _PAD = 720, 34, 190, 16
_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1c2430; --quiet: #5a6678; --edge: #c9d0da; --bar: #2f6bc2;
  --thin: #9db7de; --warn: #a63a12; --cell: 47, 107, 194; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181f; --ink: #e8ecf2; --quiet: #a3aebf;
  --edge: #3c4656; --bar: #7fb0ff; --thin: #4d6c9e; --warn: #ffab85; --cell: 127, 176, 255; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 62em; padding: 0 1em;
  background: var(--ground); color: var(--ink); }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2.2em } h3 { font-size: 1em; margin: 1.6em 0 .4em }
.wide { overflow-x: auto } table { border-collapse: collapse } th, td { text-align: left; padding: .3em .6em }
td:first-child, th:first-child { white-space: nowrap; padding-left: 0 }
th { border-bottom: 2px solid var(--edge); font-weight: 600; vertical-align: bottom }
td { border-bottom: 1px solid var(--edge) }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.quiet { color: var(--quiet) } .note { color: var(--warn) }
svg { max-width: 100%; height: auto; display: block } svg text { fill: var(--ink); font: 14px system-ui, sans-serif }
svg .axis { stroke: var(--edge) } svg .scale { fill: var(--quiet); font-size: 12px }
svg .thin { stroke: var(--thin); stroke-width: 2 }
svg .bar { stroke: var(--bar); stroke-width: 7; stroke-linecap: round }
svg circle { fill: var(--ground); stroke: var(--bar); stroke-width: 2.5 }
"""
_KINDS = {
    "clustered": "votes of one rater, and on one prompt, may depend on each other (cluster-robust sandwich)",
    "bootstrap": "raters, prompts and votes drawn anew",
    "sandwich": "votes taken as independent (H<sup>-1</sup>GH<sup>-1</sup>)",
    "information": "votes independent and the model true (H<sup>-1</sup>)",
}


def report_page(
    questions: Mapping[str, str],
    results: Mapping[str, QuestionResult],
    others: Mapping[str, QuestionResult],
    raters: Sequence[RaterSummary],
) -> str:
    """The page's text."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>Votes</title><style>{_STYLE}</style><h1>Votes on pairs of clips</h1>",
        "<p>Elo by Bradley and Terry's model; a tie, and a vote that both are bad, is half a win for each. A "
        "difference of 100 Elo means that the better clip wins 64 % of votes, 200 means 76 %.</p>",
    ]
    for name, result in results.items():
        parts += [f"<h2>{_text(questions[name])}</h2>", _about(result), _plot(result), _table(result)]
        if name in others:
            parts.append(_other(others[name], result))
        parts += [_neighbours(result), _matrix(result), _effects(result)]
    return "\n".join([*parts, _raters(raters), _kinds()]) + "\n"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _about(result: QuestionResult) -> str:
    notes = "".join(f"<p class=note>{_text(note)}</p>" for note in result.notes)
    return (
        f"<p>{result.votes} votes ({result.ties} ties, {result.bad} both bad) of {result.raters} raters on "
        f"{result.prompts} prompts.</p>{notes}"
    )


def _plot(result: QuestionResult) -> str:
    """Systems from best to worst with their interval, and, thin, the one that holds for all systems at once."""
    rows = result.systems
    ends = [end for row in rows for end in (*row.intervals[result.kind], *row.simultaneous)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0
    low, span = low - 0.04 * span, 1.08 * span

    def at(elo: float) -> str:
        return f"{_NAME + (elo - low) / span * (_WIDTH - _NAME - _PAD):.1f}"

    height = _ROW * len(rows) + 26
    parts = [f"<svg viewBox='0 0 {_WIDTH} {height}' width={_WIDTH} role=img aria-label='Elo with 95 % intervals'>"]
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10**9) if span / s <= 9)
    tick = int(-(-low // step) * step)
    while tick <= low + span:
        parts.append(f"<line class=axis x1={at(tick)} x2={at(tick)} y1=0 y2={height - 20} />")
        parts.append(f"<text class=scale x={at(tick)} y={height - 4} text-anchor=middle>{tick}</text>")
        tick += step
    for n, row in enumerate(rows):
        y = _ROW * n + _ROW // 2
        a, b = row.intervals[result.kind]
        label = row.system if len(row.system) <= 24 else row.system[:22] + "…"
        parts.append(f"<text x=0 y={y + 5}>{_text(label)}<title>{_text(row.system)}</title></text>")
        parts.append(f"<line class=thin x1={at(row.simultaneous[0])} x2={at(row.simultaneous[1])} y1={y} y2={y} />")
        parts.append(f"<line class=bar x1={at(a)} x2={at(b)} y1={y} y2={y} /><circle cx={at(row.elo)} cy={y} r=5 />")
    legend = "thick: 95 % interval of each system; thin: of all systems at once"
    return "".join(parts) + f"</svg><p class=quiet>{legend} ({result.kind})</p>"


def _table(result: QuestionResult) -> str:
    kinds = shown_kinds(result.kind)
    overall = {rate.first: rate for rate in result.rates if rate.second is None}
    head = "".join(f"<th class=n>{kind}<br>95 %" for kind in kinds)
    lines = [f"<tr><th>system<th class=n>Elo{head}<th class=n>rank<th class=n>won (Wilson 95 %)<th class=n>both bad"]
    for row in result.systems:
        bounds = "".join(f"<td class=n>{_interval(row.intervals[kind])}" for kind in kinds)
        rank = " to ".join(map(str, dict.fromkeys(row.rank)))
        lines.append(
            f"<tr><td>{_text(row.system)}<td class=n>{row.elo:.1f}{bounds}<td class=n>{rank}"
            f"<td class=n>{_rate(overall[row.system])}<td class=n>{100 * row.bad:.1f} %"
        )
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


def _other(other: QuestionResult, main: QuestionResult) -> str:
    which = "Without" if other.votes < main.votes else "With"
    elos = "; ".join(
        f"{_text(row.system)} {row.elo:.0f} {_interval(row.intervals[other.kind])}" for row in other.systems
    )
    return f"<p>{which} the votes of flagged raters ({other.votes} votes): {elos}</p>"


def _neighbours(result: QuestionResult) -> str:
    lines = []
    for pair in result.neighbours:
        if pair.decided:
            more = "decided, however often it was looked at on the way"
        elif pair.more is None:
            more = "not to be told apart with ten times as many votes"
        else:
            more = f"about {pair.more} more votes may decide it"
        told = f"{_text(pair.first)} over {_text(pair.second)}: {pair.difference:+.0f} {_interval(pair.interval)}"
        lines.append(f"<li>{told}; {more}")
    first, second, error = result.next_pairs[0]
    ask = f"<li>ask next: {_text(first)} with {_text(second)} (known to {error:.0f} Elo, one standard error)"
    return f"<h3>Neighbours, and what to ask next</h3><ul>{''.join(lines)}{ask}</ul>"


def _matrix(result: QuestionResult) -> str:
    """How often the row's system won against the column's."""
    names = [row.system for row in result.systems]
    cells = {(rate.first, rate.second): (rate.rate, rate.low, rate.high, rate.votes) for rate in result.rates}
    lines = ["<tr><th>" + "".join(f"<th class=n>{_text(name)}" for name in names)]
    for first in names:
        row = f"<tr><th>{_text(first)}"
        for second in names:
            known = cells.get((first, second))
            if known is None and (other := cells.get((second, first))) is not None:
                known = (1 - other[0], 1 - other[2], 1 - other[1], other[3])
            if known is None:
                row += "<td class='n quiet'>" + ("" if first == second else "no votes")
                continue
            rate, low, high, votes = known
            tint = f"background: rgba(var(--cell), {0.45 * rate:.2f})"
            bounds = f"[{100 * low:.0f}, {100 * high:.0f}]"
            row += (
                f"<td class=n style='{tint}' title='{votes} votes'>{100 * rate:.0f} % <span class=quiet>{bounds}</span>"
            )
        lines.append(row)
    return (
        f"<h3>Won by the row against the column (Wilson 95 %)</h3><div class=wide><table>{''.join(lines)}</table></div>"
    )


def _effects(result: QuestionResult) -> str:
    if not result.effects:
        return ""
    lines = [
        f"<li>{effect.name}: {effect.elo:+.1f} Elo {_interval(effect.interval, '+.1f')} {effect.unit}"
        f"{'' if effect.interval[0] <= 0 <= effect.interval[1] else ' <span class=note>(not 0)</span>'}"
        for effect in result.effects
    ]
    return f"<h3>What else moved votes</h3><ul>{''.join(lines)}</ul>"


def _raters(raters: Sequence[RaterSummary]) -> str:
    lines = [
        "<tr><th>rater<th class=n>votes<th class=n>checks failed<th class=n>left<th class=n>ties<th class=n>both bad"
    ]
    lines[0] += "<th class=n>median seconds<th>flag"
    for rater in raters:
        took = "" if rater.seconds is None else f"{rater.seconds:.1f}"
        shares = "".join(f"<td class=n>{100 * share:.0f} %" for share in (rater.left, rater.ties, rater.bad))
        lines.append(
            f"<tr><td>{_text(rater.rater)}<td class=n>{rater.votes}<td class=n>{rater.failed} of {rater.checks}{shares}"
            f"<td class=n>{took}<td class=note>{_text(rater.flag)}"
        )
    return f"<h2>Raters</h2><div class=wide><table>{''.join(lines)}</table></div>"


def _kinds() -> str:
    lines = "".join(f"<li>{kind}: {text}" for kind, text in _KINDS.items())
    return f"<h2>What the intervals assume</h2><ul>{lines}</ul>"


def _interval(bounds: tuple[float, float], form: str = ".0f") -> str:
    return f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"


def _rate(rate: WinRate) -> str:
    return f"{100 * rate.rate:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
