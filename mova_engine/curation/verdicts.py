"""Verdicts: which clips are kept, by the filters' conditions over what was measured. Scores are no part of it.

A clip is dropped where a filter is false, kept where all are true, and unknown where none is false and one cannot be
decided. The filters' order says what is measured first and which filter is named; it never changes a verdict. So does
what else was measured of a clip: nothing that is learned later changes what was decided.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.expression_nodes import ClipRow
from mova_engine.curation.filter_columns import filter_columns, scores_of
from mova_engine.curation.filter_expression import FilterExpression, parse_filter
from mova_engine.errors import MovaError, suggest
from mova_engine.scores.score_table import SCORES

if TYPE_CHECKING:
    import pyarrow as pa

Verdict = Literal["keep", "drop", "unknown"]
VERDICTS: tuple[Verdict, ...] = ("keep", "drop", "unknown")


@dataclass(frozen=True)
class Judge:
    """Filters in their order, and marks, which are noted of each clip and drop none. also: scores that are measured of
    every clip that no filter drops.
    """

    filters: tuple[FilterExpression, ...]
    marks: tuple[FilterExpression, ...] = ()
    also: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        filters: Mapping[str, str],
        marks: Mapping[str, str] | None = None,
        also: Iterable[str] = (),
        order: Sequence[str] | None = None,
    ) -> "Judge":
        """Read conditions by name. order: all filters' names, in another order than that of `filters`.

        MovaError for a condition that cannot be read, a name that a column has, and an order of other filters.
        """
        noted: dict[str, FilterExpression] = {}
        for name, text in (marks or {}).items():
            if name in filter_columns() or name in _OWN or not name.isidentifier():
                raise MovaError(f"mark {name}: a mark is one word that no column has as its name")
            noted[name] = parse_filter(name, text)
        for name in filters:
            # A file of an order has one on each line, and comments.
            if not _NAME.fullmatch(name):
                raise MovaError(f"filter {name!r}: a filter's name is letters, digits, - and _")
        read = {name: parse_filter(name, text, noted) for name, text in filters.items()}
        return cls(tuple(read[name] for name in ordered_names(read, order)), tuple(noted.values()), tuple(also))

    @property
    def scores(self) -> tuple[str, ...]:
        """Every score that may be needed, in the order in which they are first needed."""
        read = (column for each in (*self.filters, *self.marks) for column in each.columns)
        return tuple(dict.fromkeys((*scores_of(read), *self.also)))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that filters and marks read, each once."""
        return tuple(dict.fromkeys(column for each in (*self.filters, *self.marks) for column in each.columns))

    def scores_needed(self, row: ClipRow) -> tuple[str, ...]:
        """The scores of which the clip's next is to be measured, the first of them first; empty: nothing is missing.

        row: the clip's labels, and {column: number} of what was measured; None is a number that a score did not give,
        a column that is left out was not measured. Measure the first score, add its columns, and ask again: the second
        is often not needed then. A filter that is false ends it. A filter that cannot be decided does not, as a later
        one may drop the clip. Columns that are known only when all clips are together are waited for.
        """
        for each in self.filters:
            decided = each.of_row(row)
            if decided is False:
                return ()
            if decided is None and (scores := scores_of(each.open_columns(row))):
                return scores
        open_columns = (column for each in self.marks for column in each.open_columns(row))
        return tuple(dict.fromkeys((*scores_of(open_columns), *(name for name in self.also if not _given(name, row)))))

    def verdict(self, row: ClipRow) -> tuple[Verdict, str | None]:
        """One clip's verdict, and the filter that drops it or cannot be decided; None of a clip that is kept."""
        found = {each.name: each.of_row(row) for each in self.filters}
        dropper = next((name for name, decided in found.items() if decided is False), None)
        undecided = next((name for name, decided in found.items() if decided is None), None)
        if dropper is not None:
            return "drop", dropper
        return ("keep" if undecided is None else "unknown"), undecided

    def verdict_columns(self, table: "pa.Table") -> "pa.Table":
        """The verdict of each row: columns "verdict" and "dropped_by" (text as dictionaries of int16) and a column of
        truths by each mark's name, null where it cannot be decided.
        """
        import pyarrow as pa

        pc = compute()
        count = table.num_rows
        dropper, undecided = _nothing(count), _nothing(count)
        # From the last filter to the first, so that the first one's name stays.
        for i, each in reversed(list(enumerate(self.filters))):
            decided, at = each.of_table(table), pa.scalar(i, pa.int16())
            dropper = pc.if_else(pc.fill_null(pc.invert(decided), False), at, dropper)
            undecided = pc.if_else(pc.is_null(decided), at, undecided)
        dropped, unsure = pc.is_valid(dropper), pc.is_valid(undecided)
        code = pc.if_else(dropped, _code("drop"), pc.if_else(unsure, _code("unknown"), _code("keep")))
        names = pa.array([each.name for each in self.filters], pa.string())
        columns = {
            "verdict": _texts(code, pa.array(VERDICTS)),
            "dropped_by": _texts(pc.coalesce(dropper, undecided), names),
            **{each.name: each.of_table(table) for each in self.marks},
        }
        return pa.table(columns)


_NAME = re.compile(r"[\w-]+")
# Columns that curation adds, beside those that filters read.
_OWN = ("verdict", "dropped_by", "reasons", "unit", "caption", "sound_shift", "gain_db", "video_path", "cuts", "speech",
        "crop_x", "crop_y", "crop_width", "crop_height", "pad_width", "pad_height")  # fmt: skip


def ordered_names(names: Iterable[str], order: Sequence[str] | None) -> tuple[str, ...]:
    """The filters' names in the order that is asked for. MovaError where that has other names, or one twice."""
    names = tuple(names)
    if order is None:
        return names
    for name in order:
        if name not in names:
            raise MovaError(f"the order names the filter '{name}', which there is not.{suggest(name, names)}")
    missing = [name for name in names if name not in order]
    if missing or len(set(order)) < len(order):
        what = f"lacks {', '.join(missing)}" if missing else "names a filter twice"
        raise MovaError(f"the order {what}: it wants each filter once ({', '.join(names)})")
    return tuple(order)


def _given(score: str, row: ClipRow) -> bool:
    """Whether a score was measured of a clip."""
    columns = [column.name for column in SCORES[score].columns]
    return not columns or any(name in row for name in columns)


def _nothing(count: int) -> "pa.Array":
    import pyarrow as pa

    return pa.nulls(count, pa.int16())


def _code(verdict: Verdict) -> "pa.Scalar":
    import pyarrow as pa

    return pa.scalar(VERDICTS.index(verdict), pa.int16())


def _texts(codes: "pa.Array | pa.ChunkedArray", words: "pa.Array") -> "pa.Array | pa.ChunkedArray":
    """Words by their numbers."""
    import pyarrow as pa

    if isinstance(codes, pa.ChunkedArray):
        return pa.chunked_array(
            [pa.DictionaryArray.from_arrays(chunk, words) for chunk in codes.chunks],
            type=pa.dictionary(pa.int16(), pa.string()),
        )
    return pa.DictionaryArray.from_arrays(codes, words)
