"""The table of an evaluation as Parquet: a row for each clip, the same bytes for the same numbers."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from mova_engine.scores.score_table import Score


def parquet_bytes(rows: Sequence[Mapping[str, Any]], scores: Sequence[Score]) -> bytes:
    """Columns "clip" and "sha256", each number as a nullable double with its unit as metadata, reasons as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field("clip", pa.string()), pa.field("sha256", pa.string())]
    for score in scores:
        about = {"version": str(score.version), "convention": score.convention}
        for column in score.columns:
            said = {"unit": column.unit, "about": column.about, "better": column.better}
            fields.append(pa.field(column.name, pa.float64(), metadata=about | said))
        fields.append(pa.field(f"why_{score.name}", pa.string()))
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(fields))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
