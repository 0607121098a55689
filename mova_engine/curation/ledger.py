"""What was found of each unit in each step, as Parquet parts: content-keyed, whole or not there, the same bytes for
the same rows.

    OUT/ledger/STEP-FINGERPRINT/AB/ABCDEF...parquet

A step's fingerprint is made of all that its numbers depend on besides the unit: version, settings, weights. What is
missing is what is left to do. Files are read and written as a whole, without locks and without mapping them into
memory, so that the ledger may lie on a network file system.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]
# Letters of a fingerprint: 64 bits of SHA-256.
_LETTERS = 16
_SUFFIX = ".parquet"
_FACTS = b"facts"
# Every part has this column, also one without rows.
CLIP = "clip_id"


class LedgerError(MovaError):
    """The ledger cannot be written, as on a full disk: no fault of the unit, and the run ends."""


@dataclass(frozen=True)
class LedgerStep:
    """A step of the work, and what its results depend on besides the unit."""

    name: str
    fingerprint: str

    @classmethod
    def made_of(cls, name: str, facts: Mapping[str, Any]) -> "LedgerStep":
        """facts: what JSON knows, in any order."""
        text = json.dumps([name, facts], sort_keys=True, default=str)
        return cls(name, hashlib.sha256(text.encode()).hexdigest()[:_LETTERS])

    @property
    def folder(self) -> str:
        """The folder's name in the ledger."""
        return f"{self.name}-{self.fingerprint}"


@dataclass(frozen=True)
class LedgerPart:
    """rows: one for each clip, or for each failure; values are text, numbers or None. facts: what JSON knows of all."""

    rows: Sequence[Row] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Ledger:
    """Parts in a folder, by step and unit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def present(self, step: LedgerStep) -> set[str]:
        """Keys of the units that have a part in a step: one listing of at most 256 folders, no file is opened."""
        places = [self.folder / step.folder / name for name in _names(self.folder / step.folder)]
        # Files that are being written have another ending.
        return {name.removesuffix(_SUFFIX) for place in places for name in _names(place) if name.endswith(_SUFFIX)}

    def read(self, step: LedgerStep, key: str) -> LedgerPart | None:
        """A unit's part; None where it is missing or damaged (a machine that lost power), which is then made anew."""
        table = self.table(step, key)
        return None if table is None else LedgerPart(table.to_pylist(), facts_of(table))

    def table(self, step: LedgerStep, key: str) -> "pa.Table | None":
        """The same as a table, whose facts `facts_of` has: without the columns of which no row has a value."""
        try:
            data = self._path(step, key).read_bytes()
        except OSError:
            return None
        return read_table(data)

    def write(self, step: LedgerStep, key: str, part: LedgerPart) -> None:
        """Store a part in place of an earlier one. Raises LedgerError where that cannot be done."""
        try:
            # Not flushed to the disk: what a loss of power spoils is found by its checksums, and made anew.
            write_atomic(self._path(step, key), part_bytes(part), sync=False)
        except MovaError as error:
            raise LedgerError(f"{error}; the same command goes on once that is mended") from None

    def remove(self, step: LedgerStep, key: str) -> None:
        """Forget a part; without one it does nothing."""
        self._path(step, key).unlink(missing_ok=True)

    def _path(self, step: LedgerStep, key: str) -> Path:
        # Folders of a million files are slow on network file systems.
        return self.folder / step.folder / key[:2] / f"{key}{_SUFFIX}"


def part_bytes(part: LedgerPart) -> bytes:
    """A part as a Parquet file. Columns in order of name, CLIP first; those without any value are left out."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted({name for row in part.rows for name, value in row.items() if value is not None} - {CLIP})
    columns = {name: [row.get(name) for row in part.rows] for name in (CLIP, *names)}
    arrays = [pa.array(values, _type(values)) for values in columns.values()]
    metadata = {_FACTS: json.dumps(part.facts, sort_keys=True).encode()}
    buffer = io.BytesIO()
    table = pa.table(arrays, pa.schema([(name, array.type) for name, array in zip(columns, arrays, strict=True)]))
    pq.write_table(
        table.replace_schema_metadata(metadata),
        buffer,
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return buffer.getvalue()


def facts_of(table: "pa.Table") -> Mapping[str, Any]:
    """The facts of a part that was read as a table."""
    return json.loads(table.schema.metadata[_FACTS])


def read_table(data: bytes) -> "pa.Table | None":
    """What `part_bytes` wrote, as a table; None for anything else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Read from memory, by one thread: parts are small.
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        table = file.read(use_threads=False)
        facts_of(table)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return table


def _type(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if kinds <= {float, int} and float in kinds:
        return pa.float64()
    return {int: pa.int64(), bool: pa.bool_()}.get(next(iter(kinds), str), pa.string())


def _names(folder: Path) -> list[str]:
    """Names in a folder; a missing one has none."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
