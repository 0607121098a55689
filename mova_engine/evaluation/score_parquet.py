"""The table of an evaluation as Parquet: a row for each clip, the same bytes for the same numbers."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.files.atomic import require_file
from mova_engine.scores.score_declaration import Score


def parquet_bytes(
    rows: Sequence[Mapping[str, Any]], scores: Sequence[Score], facts: Mapping[str, Mapping[str, Any]]
) -> bytes:
    """Columns "clip" and "sha256", of a bench's clips "id" and "category"; numbers as nullable doubles with their units
    as metadata, reasons as text.

    facts: {score: {"version", "convention", "weights": {name: SHA-256}, of transcripts "recogniser"}}, metadata too.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = [name for name in ("clip", "sha256", "id", "category") if not rows or name in rows[0]]
    fields = [pa.field(name, pa.string()) for name in labels]
    for score in scores:
        stated = facts[score.name]
        weights = " ".join(f"{name} {digest}" for name, digest in stated["weights"].items())
        about = {"version": str(stated["version"]), "convention": stated["convention"], "weights": weights}
        about |= {"recogniser": stated["recogniser"]} if "recogniser" in stated else {}
        for column in score.columns:
            said = {"unit": column.unit, "about": column.about, "better": column.better}
            fields.append(pa.field(column.name, pa.float64(), metadata=about | said))
        fields.append(pa.field(f"why_{score.name}", pa.string()))
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(fields))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


@dataclass(frozen=True)
class ScoreRows:
    """rows: {clip: row}; columns: {number: its metadata, "unit", "better", "version", "convention", "weights"}."""

    rows: dict[str, dict[str, Any]]
    columns: dict[str, dict[str, str]]


def read_parquet(path: Path) -> ScoreRows:
    """A table that `parquet_bytes` made. MovaError where it is missing, damaged or something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_file(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise MovaError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    columns = {
        field.name: {key.decode(): value.decode() for key, value in field.metadata.items()}
        for field in table.schema
        if field.metadata and b"convention" in field.metadata
    }
    if "clip" not in table.column_names or not columns:
        raise MovaError(f"{path} is no table of scores")
    return ScoreRows({row["clip"]: row for row in table.to_pylist()}, columns)
