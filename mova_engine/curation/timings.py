"""Seconds that the steps of units took, and on which hosts: files of their own, which no result depends on."""

import io
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.curation.unit_run import UnitReport
from mova_engine.curation.unit_steps import CUT
from mova_engine.files.atomic import write_atomic

if TYPE_CHECKING:
    import pyarrow as pa

# Rows are written together: a file for each unit would be many.
_EVERY_S = 30.0


class Timings:
    """Gathers what units' reports tell, and writes it from time to time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: list[Mapping[str, Any]] = []
        self._written = time.monotonic()

    def add(self, unit: str, report: UnitReport) -> None:
        """unit: its key."""
        for step, seconds in report.seconds.items():
            film = report.film if step == CUT else 0.0
            measured = report.measured[step]
            row = {"unit": unit, "step": step, "seconds": seconds, "clips": measured, "film": film, "host": report.host}
            self._rows.append(row)
        if time.monotonic() - self._written > _EVERY_S:
            self.write()

    def write(self) -> None:
        """Write what was gathered."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._written = time.monotonic()
        if not self._rows:
            return
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, _schema()), buffer, compression="zstd")
        name = f"{time.time_ns():x}-{secrets.token_hex(4)}.parquet"
        write_atomic(self._folder / name, buffer.getvalue(), sync=False)
        self._rows = []


def read_timings(folder: Path) -> "pa.Table":
    """All timings of a curation's runs: a row for each step of each unit that was done, with its seconds, the clips
    that it ran on, and for "cut" the seconds of film.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob("*.parquet"))
    parts = [pq.read_table(pa.BufferReader(path.read_bytes())) for path in files]
    return pa.concat_tables(parts) if parts else _schema().empty_table()


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    kinds = {"unit": text, "step": text, "seconds": number, "clips": pa.int64(), "film": number, "host": text}
    return pa.schema(list(kinds.items()))
