"""A bench on the page of an evaluation: its numbers by category, what is missing, and apart from them what others
published.
"""

from collections.abc import Sequence

from mova_engine.errors import counted
from mova_engine.evaluation.benches.bench_run import BenchResult
from mova_engine.evaluation.benches.bench_summary import BenchNumber
from mova_engine.evaluation.column_summary import ColumnSummary
from mova_engine.evaluation.published_rows import PublishedTable, published_tables
from mova_engine.web.page_text import number, text

_NAMED = 12
_COLUMNS = ("value", "95 % interval", "chance", "clips")
_RULES = {"categories": "mean of categories", "clips": "mean over clips"}
_BETTER = {"up": "higher", "down": "lower", "": ""}


def bench_section(result: BenchResult) -> str:
    """Coverage, numbers, and published ones."""
    bench, found = result.bench, result.found
    count = len(bench.items)
    parts = [
        f"<h2>Bench {text(bench.name)}</h2>",
        f"<p>{count - len(found.missing)} of {counted(count, 'clip')} that it asks for have a file. "
        "Coverage below counts the clips that it asks for.</p>",
        *(f"<p class=few>{text(note)}</p>" for note in bench.notes),
        _named("Clips without a file", [f"{item.category}/{item.id}" for item in found.missing]),
        _named("Files that are no clip of it, not measured", [file.as_posix() for file in found.extra]),
        _own_numbers(result),
        _reasons(result.numbers),
        *(_published(table, result) for table in published_tables(bench.name)),
    ]
    return "\n".join(part for part in parts if part)


def _named(what: str, names: Sequence[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(map(text, names[:_NAMED]))
    rest = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return f"<p class=few>{what}: {len(names)} <span class=quiet>({shown}{rest})</span></p>"


def _own_numbers(result: BenchResult) -> str:
    numbers, categories = result.numbers, result.bench.categories
    shown = categories if len(categories) > 1 else ()
    head = "<tr><th>number" + "".join(f"<th class=n>{text(x)}" for x in (*_COLUMNS, *shown))
    rows = [head + "<th>better"]
    asked = len(result.bench.numbers) or len(numbers)
    for i, each in enumerate(numbers):
        if i == asked:
            rows.append(f"<tr><td colspan={6 + len(shown)} class=quiet>measured too, not asked for by the bench")
        cells = "".join(f"<td class=n>{_part(each.categories.get(name))}" for name in shown)
        interval = "" if each.total.interval is None else " to ".join(map(number, each.total.interval))
        coverage = f"<td class='{_coverage(each.total)}'>{each.total.scored} of {each.total.asked}"
        rows.append(
            f"<tr><td>{text(each.asked.name)}{_quiet(each.convention)}"
            f"<td class=n>{_value(each.total, each.unit)}{_quiet(_rule(each))}<td class=n>{interval}"
            f"<td class=n>{number(each.total.chance)}{coverage}{cells}<td>{_BETTER[each.better]}"
        )
    return "<div class=wide><table>" + "\n".join(rows) + "</table></div>"


def _quiet(said: str) -> str:
    return f"<br><span class=quiet>{text(said)}</span>" if said else ""


def _rule(each: BenchNumber) -> str:
    if each.total.mean is None or len(each.categories) < 2:
        return ""
    return "sum over clips" if each.asked.per else _RULES[each.asked.rule]


def _value(summary: ColumnSummary, unit: str) -> str:
    return "none" if summary.mean is None else f"{number(summary.mean)} {text(unit)}"


def _coverage(summary: ColumnSummary) -> str:
    return "n" if summary.scored == summary.asked else "n few"


def _part(summary: ColumnSummary | None) -> str:
    if summary is None:
        return "<span class=quiet>not asked</span>"
    few = "" if summary.scored == summary.asked else f" <span class=few>({summary.scored} of {summary.asked})</span>"
    return f"{number(summary.mean) or 'none'}{few}"


def _reasons(numbers: Sequence[BenchNumber]) -> str:
    """Why clips have no number, and what weakens numbers: each once, with the numbers that it concerns."""
    reasons: dict[str, list[str]] = {}
    for each in numbers:
        for reason, count in each.total.reasons.items():
            reasons.setdefault(reason, []).append(f"{each.asked.name} {count}")
    notes: dict[str, list[str]] = {}
    for each in numbers:
        for note in each.notes:
            notes.setdefault(note, []).append(each.asked.name)
    lines = [f"<li>{text(note)}: {text(', '.join(names))}" for note, names in notes.items()]
    lines += [f"<li>clips without a number, {text(why)}: {text(', '.join(names))}" for why, names in reasons.items()]
    return f"<ul class=few>{''.join(lines)}</ul>" if lines else ""


def _published(table: PublishedTable, result: BenchResult) -> str:
    rows = ["<tr><th>model" + "".join(f"<th class=n>{text(name)}" for name in table.names)]
    for row in table.rows:
        cells = "".join(f"<td class=n>{text(row.values.get(name, ''))}" for name in table.names)
        rows.append(f"<tr><td>{text(row.model)}{cells}")
    unlike = table.differences(result.numbers)
    warnings = [f"Not comparable with yours, which follow another convention: {', '.join(unlike)}"] if unlike else []
    warnings += [f"Not comparable with yours, which are of other clips: {note}" for note in result.bench.notes]
    notes = "".join(f"<li>{text(note)}" for note in table.remarks)
    unknown = "".join(f"<li>not stated: {text(note)}" for note in table.unknown)
    return (
        f"<section class=published><h3>Published by others: {text(table.title)}</h3>"
        f"<p class=quiet>Read in {text(table.source)}; convention: {text(table.convention)}. "
        "None of it was measured here.</p>"
        + "".join(f"<p class=few>{text(warning)}</p>" for warning in warnings)
        + "<div class=wide><table>"
        + "\n".join(rows)
        + f"</table></div><ul class=quiet>{notes}{unknown}</ul></section>"
    )
