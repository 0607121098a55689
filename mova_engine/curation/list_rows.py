"""The rows of published lists, one after the other. A bad row is told and the next one read: long lists have some.

CSV, JSON lines, JSON (a list, or an object of objects) and Parquet; which it is, the suffix says.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError, require_package
from mova_engine.files.atomic import require_file

SUFFIXES = (".csv", ".json", ".jsonl", ".parquet")
# Characters of a cell, and of a line: more is no caption but a damaged file.
LARGEST = 16 << 20
PARQUET_ROWS = 4096

# (what the row is called, its value: cells by their column, the cells of a file without a head, or a JSON value).
ListRow = tuple[str, Any]


class BadRowError(MovaError):
    """A row that cannot be used. The message has nothing that is of this row alone, so that equal ones are counted."""


def list_rows(path: Path, *, head: bool = True) -> Iterator[tuple[str, Any | BadRowError]]:
    """Yield (place, row) of a list; a BadRowError in place of a row that is damaged. head: whether the first line of a
    CSV file names the columns; without it a row is the list of its cells.

    Raises MovaError for a file that cannot be read at all, and for an unknown suffix.
    """
    require_file(path)
    readers = {".csv": partial(_csv, head=head), ".json": _json, ".jsonl": _json_lines, ".parquet": _parquet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise MovaError(f"{path}: a list of films ends in one of {', '.join(SUFFIXES)}")
    try:
        yield from readers[suffix](path)
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror or error})") from None


def _lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        yield from file


def _csv(path: Path, *, head: bool) -> Iterator[tuple[str, Any | BadRowError]]:
    csv.field_size_limit(LARGEST)
    rows, columns = csv.reader(_lines(path)), None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {rows.line_num}", BadRowError(f"not valid CSV ({error})")
            continue
        place = f"line {rows.line_num}"
        if not cells:
            continue
        if not _decoded(cells):
            yield place, BadRowError("not UTF-8")
        elif not head:
            yield place, cells
        elif columns is None:
            columns = [cell.strip() for cell in cells]
        elif len(cells) != len(columns):
            yield place, BadRowError("has another number of cells than the first line")
        else:
            yield place, dict(zip(columns, cells, strict=True))


def _json_lines(path: Path) -> Iterator[tuple[str, Any | BadRowError]]:
    for number, line in enumerate(_lines(path), start=1):
        text = line.strip().removesuffix(",")
        if text in ("", "[", "]"):
            continue
        yield f"line {number}", BadRowError("longer than a row can be") if len(text) > LARGEST else _parsed(text)


def _json(path: Path) -> Iterator[tuple[str, Any | BadRowError]]:
    """One value, or JSON lines under that suffix, as some lists are published."""
    lines = _lines(path)
    first = next((line for line in lines if line.strip()), "")
    begun = first.strip().removesuffix(",")
    if begun.startswith("{") and begun.endswith("}") and any(line.strip() for line in lines):
        yield from _json_lines(path)
        return
    whole = _parsed("".join(_lines(path)))
    if isinstance(whole, BadRowError):
        raise MovaError(f"{path}: {whole}")
    if isinstance(whole, list):
        yield from ((f"item {number}", item) for number, item in enumerate(whole, start=1))
    elif isinstance(whole, dict) and whole and all(isinstance(value, dict) for value in whole.values()):
        yield from ((f"key {number}", {key: value}) for number, (key, value) in enumerate(whole.items(), start=1))
    else:
        yield "item 1", whole


def _parsed(text: str) -> Any | BadRowError:
    try:
        text.encode()
        return json.loads(text)
    except UnicodeEncodeError:
        return BadRowError("not UTF-8")
    except (ValueError, RecursionError):
        return BadRowError("not valid JSON")


def _parquet(path: Path) -> Iterator[tuple[str, Any | BadRowError]]:
    require_package("pyarrow", f"{path}: Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            # Columns of bytes hold files, not what is said of them.
            schema = file.schema_arrow
            columns = [name for name in schema.names if not pa.types.is_large_binary(schema.field(name).type)]
            columns = [name for name in columns if not pa.types.is_binary(schema.field(name).type)]
            batches = file.iter_batches(PARQUET_ROWS, columns=columns, use_threads=False)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise MovaError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from None


def _decoded(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def as_object(row: Any) -> Mapping[str, Any]:
    """A row as columns. Raises BadRowError for anything else."""
    if not isinstance(row, Mapping):
        raise BadRowError("is no object of keys and values")
    return row


def text_of(row: Mapping[str, Any], *keys: str) -> str:
    """The first of the columns that holds text, without spaces around it; "" if none does."""
    for key in keys:
        value = row.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()
    return ""


def required_text(row: Mapping[str, Any], *keys: str) -> str:
    """`text_of`. Raises BadRowError if none holds text."""
    found = text_of(row, *keys)
    if not found:
        raise BadRowError(f"has no {' or '.join(keys)}")
    return found


def span_of(start: Any, end: Any) -> tuple[float, float]:
    """Seconds from and to. Raises BadRowError for what is no span of a film."""
    try:
        begin, until = float(start), float(end)
    except (TypeError, ValueError):
        raise BadRowError("its times are no numbers") from None
    if not 0 <= begin < until < 1e9:
        raise BadRowError("its times are no span: from 0 on, and the end after the start")
    return begin, until
