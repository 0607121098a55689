"""A bench's result as lines for a terminal."""

from collections.abc import Iterator

from mova_engine.evaluation.benches.bench_run import BenchResult
from mova_engine.evaluation.column_summary import ColumnSummary

_NAMED = 5


def told_bench(result: BenchResult) -> Iterator[str]:
    """What is missing, then a line for each number: by its rule, and of each category where there are several."""
    bench, found = result.bench, result.found
    yield f"{bench.name}: {len(bench.items) - len(found.missing)} of {len(bench.items)} clips have a file"
    yield from bench.notes
    for what, names in (
        ("without a file", [f"{item.category}/{item.id}" for item in found.missing]),
        ("no clip of the bench, not measured", [file.as_posix() for file in found.extra]),
    ):
        if names:
            rest = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
            yield f"{what}: {', '.join(names[:_NAMED])}{rest}"
    for each in result.numbers:
        parts = "; ".join(f"{name} {_value(part)}" for name, part in each.categories.items())
        more = f" ({parts})" if len(each.categories) > 1 else ""
        interval = "" if each.total.interval is None else " [{:.4g}, {:.4g}]".format(*each.total.interval)
        chance = "" if each.total.chance is None else f", chance {each.total.chance:.4g}"
        why = "" if each.total.scored else f": {'; '.join(each.total.reasons)}"
        coverage = f"{each.total.scored} of {each.total.asked} clips"
        yield f"{each.asked.name:18} {_value(each.total)}{interval}{chance}, {coverage}{more}{why}"


def _value(summary: ColumnSummary) -> str:
    return "none" if summary.mean is None else f"{summary.mean:.4g}"
