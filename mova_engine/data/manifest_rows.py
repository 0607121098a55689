"""Reads the rows of manifests: JSONL, JSON, CSV and Parquet files that list clips, one row after the other.

All formats have the same keys. Rows are read in a stream, so that a manifest may be larger than memory (JSON, the
format of MOVA's reference code, is one value and is read as a whole).
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from mova_engine.data.clip_edit import EDIT_KEYS
from mova_engine.data.text import read_text, shown
from mova_engine.errors import MovaError, require_package
from mova_engine.files.atomic import require_file

# Keys whose values are numbers: the cells of a CSV file are text.
WHOLE_KEYS = ("offset", "size", "shard_size")
# Of what buckets need to know of a clip: pixels of its pictures as shown, seconds from its start on.
SIZE_KEYS = ("width", "height", "duration")
NUMBER_KEYS = ("start", "shard_modified", "sound_shift", "gain_db", *SIZE_KEYS)
# All keys that count; columns of a Parquet file that are called otherwise are not read.
KEYS = (
    "video_path",
    "caption",
    "start",
    "id",
    "shard",
    "member",
    "sha256",
    "shard_etag",
    *WHOLE_KEYS,
    "shard_modified",
    *SIZE_KEYS,
    *EDIT_KEYS,
)
# Rows of a Parquet file that are in memory at once.
PARQUET_ROWS = 4096

# (what a row is called in error messages, its number from 1, its parsed value).
Row = tuple[str, int, Any]


def rows_of(path: Path) -> Iterator[Row]:
    """Yield the rows of a manifest. Raises MovaError that names the file and the row, and for an unknown suffix."""
    return reader_of(path)(path)


def reader_of(path: Path) -> Callable[[Path], Iterator[Row]]:
    """The function that reads a manifest of this name. Raises MovaError if its suffix is unknown."""
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise MovaError(f"{path}: a list of clips ends in one of {', '.join(READERS)}")
    return reader


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if line.strip():
            yield "line", number, _parse(f"{path}: line {number}", line)


def _json_list(path: Path) -> Iterator[Row]:
    items = _parse(str(path), read_text(path))
    if not isinstance(items, list):
        raise MovaError(f"{path}: must be a list of objects, got {type(items).__name__}")
    yield from (("item", number, item) for number, item in enumerate(items, start=1))


def _csv(path: Path) -> Iterator[Row]:
    """The first line names the keys. An empty cell is a key that the row lacks, except for the caption."""
    begins = [1]

    def lines() -> Iterator[str]:
        for number, line in _lines(path):
            begins[-1] = number
            yield line + "\n"

    # `last` is where the row before ended: a quoted caption may go over several lines.
    rows, last = csv.reader(lines(), strict=True), 0
    keys: list[str] = []
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            raise MovaError(f"{path}: line {last + 1}: not valid CSV ({error})") from None
        number, last = last + 1, begins[-1]
        if cells is None:
            return
        if not keys:
            keys = [cell.strip() for cell in cells]
            twice = [key for key, other in pairwise(sorted(keys)) if key == other]
            if twice:
                raise MovaError(f"{path}: line {number}: column '{shown(twice[0])}' occurs twice")
        elif cells:
            if len(cells) != len(keys):
                raise MovaError(f"{path}: line {number}: has {len(cells)} cells, the first line names {len(keys)} keys")
            yield "line", number, _typed(dict(zip(keys, cells, strict=True)))


def _typed(row: dict[str, str]) -> dict[str, Any]:
    typed: dict[str, Any] = {key: cell for key, cell in row.items() if cell or key == "caption"}
    for key in (*WHOLE_KEYS, *NUMBER_KEYS):
        if key in typed:
            # What is no number is refused later, with what the key must be.
            with suppress(ValueError):
                typed[key] = int(typed[key]) if key in WHOLE_KEYS else float(typed[key])
    return typed


def _parquet(path: Path) -> Iterator[Row]:
    """A value that is null is a key that the row lacks."""
    for first, batch, others in parquet_batches(path, PARQUET_ROWS):
        yield from parquet_rows(first, batch, others)


def parquet_rows(first: int, batch: Any, others: Sequence[str]) -> Iterator[Row]:
    """The rows of what `parquet_batches` yields. Of columns that do not count they have the name alone, for errors."""
    for number, row in enumerate(batch.to_pylist(), start=first):
        yield "row", number, {**dict.fromkeys(others), **{key: x for key, x in row.items() if x is not None}}


def parquet_batches(path: Path, rows: int) -> Iterator[tuple[int, Any, Sequence[str]]]:
    """Yield (number of the first row from 1, pyarrow.RecordBatch of KEYS, names of the other columns) of up to `rows`
    rows of a Parquet file.
    """
    require_package("pyarrow", f"{path}: Parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise MovaError(f"{path}: column '{shown(twice)}' occurs twice")
            number, others = 1, [name for name in names if name not in KEYS]
            known = [name for name in names if name in KEYS]
            if not known:
                raise MovaError(f"{path}: has no column 'video_path' (it has: {shown(', '.join(names)) or 'none'})")
            kinds = {name: file.schema_arrow.field(name).type for name in known}
            # Other tools' columns of these names may mean something else.
            known = [name for name in known if name not in SIZE_KEYS or not pa.types.is_temporal(kinds[name])]
            for name in known:
                if pa.types.is_temporal(kind := kinds[name]):
                    raise MovaError(f"{path}: column '{name}' holds {kind}, which is neither text nor a number")
            for batch in file.iter_batches(rows, columns=known, use_threads=False):
                yield number, batch.select(known), others
                number += len(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise MovaError(f"{path}: cannot be read as Parquet ({' '.join(str(error).split())})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of a UTF-8 file's lines; only line feeds end a line."""
    require_file(path)
    try:
        with open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise MovaError(f"{path}: is UTF-16, must be UTF-8: save it as UTF-8")
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                try:
                    yield number, raw.removesuffix(b"\n").decode()
                except UnicodeDecodeError as error:
                    byte = raw[error.start]
                    raise MovaError(
                        f"{path}: line {number}: not UTF-8 (byte 0x{byte:02x}): save the file as UTF-8"
                    ) from None
    except OSError as error:
        raise MovaError(f"{path}: cannot be read ({error.strerror})") from None


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise MovaError(f"{place}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise MovaError(f"{place}: not valid JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if any(key == k for k, _ in pairs[:number]))
        raise ValueError(f"key '{shown(twice)}' occurs twice in one object")
    return row


READERS = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv, ".parquet": _parquet}
