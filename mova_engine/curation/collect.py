"""Joins what the ledger has of all units to one table of clips: the same bytes for the same results."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mova_engine.curation.clip_labels import labels_of
from mova_engine.curation.filter_columns import filter_columns
from mova_engine.curation.ledger import CLIP, Ledger, Row
from mova_engine.curation.unit_cut import SIGNAL_COLUMNS
from mova_engine.curation.unit_run import UnitWork, cut_of_part, read_scores
from mova_engine.curation.units import ClipWindow, Unit
from mova_engine.scores.score_table import SCORES

if TYPE_CHECKING:
    import pyarrow as pa

# Units whose rows are Python's at a time.
_UNITS = 200


@dataclass(frozen=True)
class Collector:
    """Reads the rows of units. failed: {unit's key: why it was put aside}."""

    work: UnitWork
    ledger: Ledger
    failed: Mapping[str, str]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of numbers: what the cut measures, and those of the scores that the run may need."""
        measured = {column.name for name in self.work.steps.scores for column in SCORES[name].columns}
        return tuple(name for name in filter_columns() if name in measured or name in SIGNAL_COLUMNS)

    def table(self, units: Sequence[Unit]) -> "pa.Table":
        """A row for each clip, in the order of the units and of their clips' starts."""
        import pyarrow as pa

        schema = self.schema()
        parts = [
            pa.Table.from_pylist([row for unit in some for row in self.rows(unit)], schema)
            for some in _batched(units, _UNITS)
        ]
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def rows(self, unit: Unit) -> Iterator[dict[str, Any]]:
        """The rows of a unit's clips; none of one that was not cut."""
        part = self.ledger.read(self.work.steps.cut, unit.key)
        if part is None:
            return
        cut = cut_of_part(part)
        scores = {name: read_scores(self.ledger, self.work, unit, name) for name in self.work.steps.scores}
        for clip, signals in zip(cut.clips, cut.signals, strict=True):
            row = labels_of(unit, clip, cut.facts)
            found = {name: rows[row[CLIP]] for name, rows in scores.items() if row[CLIP] in rows}
            reasons = {name: each["reason"] for name, each in found.items() if each.get("reason")}
            if unit.key in self.failed:
                reasons["unit"] = self.failed[unit.key]
            yield {
                **row,
                **_place(unit, clip),
                **_numbers(found),
                **signals,
                "reasons": json.dumps(reasons, sort_keys=True, ensure_ascii=False),
            }

    def schema(self) -> "pa.Schema":
        """The columns before any verdict, with the units and meanings of numbers as their metadata."""
        import pyarrow as pa

        text, whole, number = pa.string(), pa.int64(), pa.float64()
        spoken = pa.struct([("start", number), ("end", number)])
        kinds = [
            *((name, text) for name in (CLIP, "source", "name", "video_path", "sha256")),
            *(("start", number), ("frames", whole), ("fps", number)),
            *((name, whole) for name in ("crop_x", "crop_y", "crop_width", "crop_height", "width", "height")),
            *(("kind", text), ("shots", whole), ("cuts", pa.list_(number)), ("speech", pa.list_(spoken))),
        ]
        fields = [pa.field(name, kind) for name, kind in kinds]
        for name in self.numbers:
            column = filter_columns()[name]
            about = {"unit": column.unit, "about": column.about, "score": column.score}
            fields.append(pa.field(name, number, metadata=about))
        return pa.schema([*fields, pa.field("reasons", text)])


def _place(unit: Unit, clip: ClipWindow) -> Row:
    x, y, width, height = clip.crop or (None, None, None, None)
    return {
        "video_path": str(unit.file.path),
        "crop_x": x,
        "crop_y": y,
        "crop_width": width,
        "crop_height": height,
        "cuts": list(clip.cuts),
        "speech": [{"start": start, "end": end} for start, end in clip.speech],
    }


def _numbers(found: Mapping[str, Row]) -> dict[str, Any]:
    return {
        column.name: row.get(column.name)
        for name, row in found.items()
        for column in SCORES[name].columns
        if column.name not in SIGNAL_COLUMNS
    }


def _batched(items: Sequence[Unit], count: int) -> Iterable[Sequence[Unit]]:
    return (items[first : first + count] for first in range(0, len(items), count))


def table_bytes(table: "pa.Table") -> bytes:
    """A table as a Parquet file, the same for the same rows however they were joined."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd", row_group_size=100_000)
    return buffer.getvalue()
