"""What a filter's expression is made of. Each part is evaluated over a table of clips or over one clip, by one logic.

A value may be missing. Comparisons and arithmetic with a missing value are missing, `and`, `or` and `not` follow
Kleene's three-valued logic: False and anything is False, True or anything is True. So a value that is learned later
never changes what was decided without it. Numbers are float64; a result that is not finite is missing.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.filter_columns import ColumnKind, FilterColumn

if TYPE_CHECKING:
    import pyarrow as pa

# A clip by column. None: measured, and there is no number; a column that is left out was not measured.
ClipRow = Mapping[str, Any]
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}
_COMPARISON: Mapping[str, Callable[[Any, Any], bool]] = {
    "less_equal": operator.le,
    "greater_equal": operator.ge,
    "less": operator.lt,
    "greater": operator.gt,
    "equal": operator.eq,
    "not_equal": operator.ne,
}


class ExpressionNode:
    """A part of an expression. kind: of its value."""

    kind: ColumnKind

    def of_table(self, table: "pa.Table") -> Any:
        """Its value for each row: an Arrow array, or a scalar where it is the same for all."""
        raise NotImplementedError

    def of_row(self, row: ClipRow) -> Any:
        """Its value for one clip; None: missing."""
        raise NotImplementedError

    def children(self) -> "tuple[ExpressionNode, ...]":
        """The parts that it is made of."""
        return ()

    def columns(self) -> Iterator[str]:
        """The columns that it reads, from left to right, some more than once."""
        for child in self.children():
            yield from child.columns()

    def open_columns(self, row: ClipRow) -> Iterator[str]:
        """Columns that were not measured of this clip and may still decide the value, from left to right."""
        if self.of_row(row) is None:
            for child in self.children():
                yield from child.open_columns(row)


@dataclass(frozen=True)
class ConstantValue(ExpressionNode):
    """A number, a text, or True and False."""

    value: float | str | bool
    kind: ColumnKind

    def of_table(self, table: "pa.Table") -> Any:
        import pyarrow as pa

        return pa.scalar(self.value)

    def of_row(self, row: ClipRow) -> Any:
        return self.value


@dataclass(frozen=True)
class ColumnValue(ExpressionNode):
    """A clip's number, text or truth."""

    column: FilterColumn

    @property
    def kind(self) -> ColumnKind:  # pyright: ignore[reportIncompatibleVariableOverride] read only is enough
        return self.column.kind

    def of_table(self, table: "pa.Table") -> Any:
        import pyarrow as pa

        pc = compute()
        types = {"number": pa.float64(), "text": pa.string(), "truth": pa.bool_()}
        if self.column.name not in table.column_names:
            return pa.scalar(None, types[self.kind])
        values = table[self.column.name].cast(types[self.kind], safe=False)
        return pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64())) if self._number else values

    def of_row(self, row: ClipRow) -> Any:
        value = row.get(self.column.name)
        return _finite(float(value)) if self._number and value is not None else value

    def columns(self) -> Iterator[str]:
        yield self.column.name

    def open_columns(self, row: ClipRow) -> Iterator[str]:
        if self.column.name not in row:
            yield self.column.name

    @property
    def _number(self) -> bool:
        return self.kind == "number"


@dataclass(frozen=True)
class ArithmeticValue(ExpressionNode):
    """A sum, difference, product or quotient. name: Arrow's for the operation."""

    name: str
    left: ExpressionNode
    right: ExpressionNode
    kind: ColumnKind = "number"

    def of_table(self, table: "pa.Table") -> Any:
        import pyarrow as pa

        pc = compute()
        found = pc.call_function(self.name, [self.left.of_table(table), self.right.of_table(table)])
        return pc.if_else(pc.is_finite(found), found, pa.scalar(None, pa.float64()))

    def of_row(self, row: ClipRow) -> Any:
        left, right = self.left.of_row(row), self.right.of_row(row)
        if left is None or right is None or (self.name == "divide" and right == 0):
            return None
        return _finite(_ARITHMETIC[self.name](left, right))

    def children(self) -> tuple[ExpressionNode, ...]:
        return self.left, self.right


@dataclass(frozen=True)
class ComparedValues(ExpressionNode):
    """Two numbers, or two texts. name: Arrow's for the comparison."""

    name: str
    left: ExpressionNode
    right: ExpressionNode
    kind: ColumnKind = "truth"

    def of_table(self, table: "pa.Table") -> Any:
        return compute().call_function(self.name, [self.left.of_table(table), self.right.of_table(table)])

    def of_row(self, row: ClipRow) -> Any:
        left, right = self.left.of_row(row), self.right.of_row(row)
        return None if left is None or right is None else _COMPARISON[self.name](left, right)

    def children(self) -> tuple[ExpressionNode, ...]:
        return self.left, self.right


@dataclass(frozen=True)
class MissingValue(ExpressionNode):
    """`column is None`: the column was measured of the clip, and has no value. Missing where it was not measured."""

    column: FilterColumn
    kind: ColumnKind = "truth"

    def of_table(self, table: "pa.Table") -> Any:
        import pyarrow as pa

        pc = compute()
        values = ColumnValue(self.column).of_table(table)
        if not self.column.score:
            return pc.is_null(values)
        if "reasons" not in table.column_names:
            return pc.if_else(pc.is_valid(values), pa.scalar(False), pa.scalar(None, pa.bool_()))
        # JSON text {score: why it gives no number}; within a reason the quotes would be written \".
        told = pc.match_substring(table["reasons"], f'"{self.column.score}":')
        measured = pc.if_else(pc.fill_null(told, False), pa.scalar(True), pa.scalar(None, pa.bool_()))
        return pc.if_else(pc.is_valid(values), pa.scalar(False), measured)

    def of_row(self, row: ClipRow) -> Any:
        return ColumnValue(self.column).of_row(row) is None if self.column.name in row else None

    def columns(self) -> Iterator[str]:
        yield self.column.name

    def open_columns(self, row: ClipRow) -> Iterator[str]:
        return ColumnValue(self.column).open_columns(row)


@dataclass(frozen=True)
class NotValue(ExpressionNode):
    """True for False, False for True."""

    operand: ExpressionNode
    kind: ColumnKind = "truth"

    def of_table(self, table: "pa.Table") -> Any:
        return compute().invert(self.operand.of_table(table))

    def of_row(self, row: ClipRow) -> Any:
        value = self.operand.of_row(row)
        return None if value is None else not value

    def children(self) -> tuple[ExpressionNode, ...]:
        return (self.operand,)


@dataclass(frozen=True)
class JoinedValues(ExpressionNode):
    """`and` or `or` of two or more parts. decisive: the value of a part that decides alone: False of `and`."""

    decisive: bool
    parts: tuple[ExpressionNode, ...]
    kind: ColumnKind = "truth"

    def of_table(self, table: "pa.Table") -> Any:
        pc = compute()
        join = pc.or_kleene if self.decisive else pc.and_kleene
        found = self.parts[0].of_table(table)
        for part in self.parts[1:]:
            found = join(found, part.of_table(table))
        return found

    def of_row(self, row: ClipRow) -> Any:
        missing = False
        for part in self.parts:
            value = part.of_row(row)
            if value is self.decisive:
                return self.decisive
            missing = missing or value is None
        return None if missing else not self.decisive

    def children(self) -> tuple[ExpressionNode, ...]:
        return self.parts


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
