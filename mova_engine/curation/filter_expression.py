"""The language of filters: conditions over a clip's columns, such as `silence <= 0.5 and (desync <= 0.5 or clap > 0)`.

Numbers, texts in quotes, True and False; columns by name, and marks; + - * / on numbers; <= >= < > == != (also in
chains: `-0.2 <= desync_offset <= 0.2`), `in` and `not in` a list of values, `is None` and `is not None`; `and`, `or`,
`not`, parentheses. The text is read by Python's parser and never run: everything else is refused.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mova_engine.curation.expression_nodes import (
    ArithmeticValue,
    ClipRow,
    ColumnValue,
    ComparedValues,
    ConstantValue,
    ExpressionNode,
    JoinedValues,
    MissingValue,
    NotValue,
)
from mova_engine.curation.filter_columns import ColumnKind, FilterColumn, filter_columns, scores_of
from mova_engine.errors import MovaError, suggest
from mova_engine.scores.score_table import SCORES

if TYPE_CHECKING:
    import pyarrow as pa

# Nobody writes longer conditions by hand, and parts within parts are followed by recursion.
MOST_LETTERS, _DEEPEST = 4000, 60
_ARITHMETIC: Mapping[type, str] = {ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide"}
_COMPARISON: Mapping[type, str] = {
    ast.LtE: "less_equal",
    ast.GtE: "greater_equal",
    ast.Lt: "less",
    ast.Gt: "greater",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}
_BREAK = re.compile(r"\s*[\r\n]\s*")
_KINDS = {"number": "a number", "text": "a text", "truth": "true or false"}


@dataclass(frozen=True)
class FilterThreshold:
    """A column that is compared with a number. sign: "<=", with the column on the left."""

    column: str
    sign: str
    value: float


@dataclass(frozen=True)
class FilterExpression:
    """A condition, or a number, that was read. name: the filter's; text: as it was written; columns: those that it
    reads, each once, from left to right.
    """

    name: str
    text: str
    root: ExpressionNode
    columns: tuple[str, ...]

    @property
    def thresholds(self) -> tuple[FilterThreshold, ...]:
        """Where it compares a column with a number, from left to right."""
        return tuple(_thresholds(self.root))

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores whose columns it reads."""
        return scores_of(self.columns)

    def of_table(self, table: "pa.Table") -> "pa.Array | pa.ChunkedArray":
        """True, False (or a number) or null for each row of a table of clips. A column that the table lacks is null in
        every row.
        """
        import pyarrow as pa

        found = self.root.of_table(table)
        return pa.repeat(found, table.num_rows) if isinstance(found, pa.Scalar) else found

    def of_row(self, row: ClipRow) -> Any:
        """The same for one clip, null as None. A column that it lacks was not measured yet; None is a number that there
        is not.
        """
        return self.root.of_row(row)

    def open_columns(self, row: ClipRow) -> tuple[str, ...]:
        """Columns that the clip lacks and that may still decide the condition, each once, from left to right."""
        return tuple(dict.fromkeys(self.root.open_columns(row)))


_SIGNS = {"less_equal": "<=", "greater_equal": ">=", "less": "<", "greater": ">", "equal": "==", "not_equal": "!="}
_MIRRORED = {"<=": ">=", ">=": "<=", "<": ">", ">": "<", "==": "==", "!=": "!="}


def _thresholds(node: ExpressionNode) -> Iterator[FilterThreshold]:
    if isinstance(node, ComparedValues):
        sign, left, right = _SIGNS[node.name], node.left, _plain(node.right)
        if isinstance(right, ColumnValue):
            sign, left, right = _MIRRORED[sign], right, _plain(left)
        if isinstance(left, ColumnValue) and isinstance(right, ConstantValue) and right.kind == "number":
            yield FilterThreshold(left.column.name, sign, float(right.value))
    for child in node.children():
        yield from _thresholds(child)


def _plain(node: ExpressionNode) -> ExpressionNode:
    """A negative number as one, which Python's grammar makes of a number and a sign."""
    if isinstance(node, ArithmeticValue) and not any(node.columns()):
        value = node.of_row({})
        return node if value is None else ConstantValue(value, "number")
    return node


def parse_filter(name: str, text: str, marks: Mapping[str, FilterExpression] | None = None) -> FilterExpression:
    """Read a condition. name: for errors. marks: conditions that it may use by their names.

    MovaError of one line, with the nearest column's name, for what is no condition.
    """
    return _read(f"filter {name}", name, text, "truth", marks or {})


def parse_number(name: str, text: str) -> FilterExpression:
    """Read an expression whose value is a number, such as "lse_offset / 25". MovaError as of `parse_filter`."""
    return _read(name, name, text, "number", {})


def _read(
    where: str, name: str, text: str, kind: ColumnKind, marks: Mapping[str, FilterExpression]
) -> FilterExpression:
    reader = _Reader(where, str(text), marks)
    root = reader.of_kind(reader.parsed(), kind)
    return FilterExpression(name, str(text), root, tuple(dict.fromkeys(root.columns())))


class _Reader:
    """Python's syntax tree as a filter's. where: the filter, for errors."""

    def __init__(self, where: str, text: str, marks: Mapping[str, FilterExpression]) -> None:
        self._where, self._marks = where, marks
        # One line: a condition of a YAML file may go over several.
        self._text = _BREAK.sub(" ", text.strip())

    def parsed(self) -> ast.expr:
        """The text as Python's syntax tree."""
        if not self._text:
            raise self.error("is empty: it wants a condition such as silence <= 0.5")
        if len(self._text) > MOST_LETTERS:
            raise self.error(f"has {len(self._text)} letters; at most {MOST_LETTERS} are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self._text, mode="eval").body
        except SyntaxError as error:
            raise self.error(f"cannot be read: {error.msg} in '{_short(self._text)}'") from None
        except (RecursionError, MemoryError, ValueError):
            raise self.error("cannot be read: it is nested too deeply") from None

    def error(self, what: str) -> MovaError:
        return MovaError(f"{self._where} {what}")

    def _said(self, node: ast.expr) -> str:
        """A part as it was written. Its place is in bytes of UTF-8."""
        return _short(self._text.encode()[node.col_offset : node.end_col_offset].decode())

    def of_kind(self, node: ast.expr, kind: ColumnKind, depth: int = 0) -> ExpressionNode:
        """A part whose value is of this kind."""
        found = self._value(node, depth)
        if found.kind != kind:
            raise self.error(f"wants {_KINDS[kind]} where it has {_KINDS[found.kind]}: '{self._said(node)}'")
        return found

    def _value(self, node: ast.expr, depth: int) -> ExpressionNode:
        if depth > _DEEPEST:
            raise self.error("cannot be read: it is nested too deeply")
        match node:
            case ast.Constant(value=value):
                return self._constant(value)
            case ast.Name(id=name):
                return self._marks[name].root if name in self._marks else ColumnValue(self._column(name))
            case ast.BoolOp(op=op, values=values):
                parts = tuple(self.of_kind(each, "truth", depth + 1) for each in values)
                return JoinedValues(isinstance(op, ast.Or), parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return NotValue(self.of_kind(operand, "truth", depth + 1))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self.of_kind(operand, "number", depth + 1)
                return ArithmeticValue("multiply", ConstantValue(-1.0, "number"), number)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                first, second = (self.of_kind(each, "number", depth + 1) for each in (left, right))
                return ArithmeticValue(_ARITHMETIC[type(op)], first, second)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                return self._chain([left, *comparators], ops, depth + 1)
            case ast.Call(func=func):
                raise self.error(f"calls '{self._said(func)}': there are no functions; abs(x) <= 1 is -1 <= x <= 1")
            case _:
                raise self.error(f"has '{self._said(node)}': columns, numbers, texts and conditions of them are read")

    def _chain(self, sides: Sequence[ast.expr], ops: Sequence[ast.cmpop], depth: int) -> ExpressionNode:
        pairs = [self._compared(sides[i], op, sides[i + 1], depth) for i, op in enumerate(ops)]
        return pairs[0] if len(pairs) == 1 else JoinedValues(False, tuple(pairs))

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr, depth: int) -> ExpressionNode:
        if isinstance(op, ast.In | ast.NotIn):
            return self._among(left, right, isinstance(op, ast.NotIn), depth)
        if isinstance(op, ast.Is | ast.IsNot):
            return self._missing(left, right, isinstance(op, ast.IsNot))
        return self._pair(_COMPARISON[type(op)], self._value(left, depth), right, depth)

    def _pair(self, name: str, left: ExpressionNode, right: ast.expr, depth: int) -> ExpressionNode:
        other = self._value(right, depth)
        if left.kind != other.kind or left.kind == "truth":
            pair = f"{_KINDS[left.kind]} with {_KINDS[other.kind]}"
            raise self.error(f"compares {pair} at '{self._said(right)}'; numbers and texts in quotes can be compared")
        self._check_value(left, other)
        self._check_value(other, left)
        return ComparedValues(name, left, other)

    def _check_value(self, column: ExpressionNode, value: ExpressionNode) -> None:
        """A misspelt kind would never be equal, and drop everything."""
        if isinstance(column, ColumnValue) and isinstance(value, ConstantValue) and column.column.values:
            said, values = str(value.value), column.column.values
            if said not in values:
                known = f"Known: {', '.join(values)}"
                raise self.error(f"asks for the {column.column.name} '{said}'.{suggest(said, values)} {known}")

    def _among(self, left: ast.expr, right: ast.expr, negated: bool, depth: int) -> ExpressionNode:
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise self.error("wants a list of values after 'in', as in kind in ('speech-shot', 'speech-cuts')")
        value = self._value(left, depth)
        pairs = tuple(self._pair("equal", value, each, depth) for each in right.elts)
        found = pairs[0] if len(pairs) == 1 else JoinedValues(True, pairs)
        return NotValue(found) if negated else found

    def _missing(self, left: ast.expr, right: ast.expr, negated: bool) -> ExpressionNode:
        if not isinstance(left, ast.Name) or left.id in self._marks or not _is_none(right):
            raise self.error("has 'is', which is read as COLUMN is None and COLUMN is not None only")
        found = MissingValue(self._column(left.id))
        return NotValue(found) if negated else found

    def _constant(self, value: Any) -> ExpressionNode:
        if isinstance(value, bool):
            return ConstantValue(value, "truth")
        if isinstance(value, str):
            return ConstantValue(value, "text")
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = float("inf")
            if number in (float("inf"), float("-inf")):
                raise self.error("has a number that is too large")
            return ConstantValue(number, "number")
        if value is None:
            raise self.error("has None: a missing value is asked for by COLUMN is None")
        raise self.error(f"has '{value!r}', which is neither a number nor a text")

    def _column(self, name: str) -> FilterColumn:
        known = filter_columns()
        if name in known:
            return known[name]
        score = SCORES.get(name)
        if score is not None:
            columns = ", ".join(column.name for column in score.columns) or "none: it gives numbers of sets"
            raise self.error(f"names the score {name}; its columns are {columns}")
        raise self.error(f"names no column: '{name}'.{suggest(name, [*self._marks, *known])}")


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
