"""Joins what the ledger has of all units to one table of clips: the same bytes for the same results."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mova_engine.curation.clip_labels import labels_of
from mova_engine.curation.cut_signals import SIGNAL_COLUMNS
from mova_engine.curation.filter_columns import columns_of, filter_columns
from mova_engine.curation.ledger import CLIP, Ledger, Row
from mova_engine.curation.unit_run import UnitWork, cut_of_part, read_rows, read_scores
from mova_engine.curation.units import ClipWindow, Unit, UnitCut
from mova_engine.files.atomic import whole_file

if TYPE_CHECKING:
    import pyarrow as pa

# Units whose rows are Python's at a time.
_UNITS = 200


@dataclass(frozen=True)
class Collected:
    """table: a row for each clip, without verdicts; prints: {clip_id: its fingerprints}; seconds: of the units that
    were cut.
    """

    table: "pa.Table"
    prints: Mapping[str, Row]
    seconds: float


@dataclass(frozen=True)
class Collector:
    """Reads what the ledger has of units. failed: {unit's key: why it was put aside}."""

    work: UnitWork
    ledger: Ledger
    failed: Mapping[str, str]

    def _numbers(self) -> tuple[str, ...]:
        """The columns of numbers: what the cut measures, and those of the scores that the run may need."""
        measured = {column for name in self.work.steps.scores for column in columns_of(name)}
        return tuple(name for name in filter_columns() if name in measured or name in SIGNAL_COLUMNS)

    def collected(self, units: Sequence[Unit]) -> "Collected":
        """All units, in their order, each with its clips in the order of their starts. Parts of one film that overlap
        may give the same clip: it is of the unit that comes first.
        """
        import pyarrow as pa

        schema, seconds = self._schema(), 0.0
        shared, seen = _shared_films(units), set[str]()
        parts: list[pa.Table] = []
        prints: dict[str, Row] = {}
        for first in range(0, len(units), _UNITS):
            rows: list[Row] = []
            for unit in units[first : first + _UNITS]:
                part = self.ledger.read(self.work.steps.cut, unit.key)
                if part is not None:  # it was cut
                    cut = cut_of_part(part)
                    seconds += float(cut.facts["seconds"])
                    own = list(self._rows(unit, cut))
                    if unit.digest in shared:
                        own = [row for row in own if row[CLIP] not in seen]
                        seen.update(row[CLIP] for row in own)
                    rows += own
                    prints |= read_rows(self.ledger, self.work.steps.prints, unit)
            parts.append(pa.Table.from_pylist(rows, schema))
        return Collected(pa.concat_tables(parts) if parts else schema.empty_table(), prints, seconds)

    def _rows(self, unit: Unit, cut: UnitCut) -> Iterator[Row]:
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
                **_measured(found),
                **{name: signals.get(name) for name in SIGNAL_COLUMNS},
                "reasons": json.dumps(reasons, sort_keys=True, ensure_ascii=False),
                "caption": unit.file.caption,
            }

    def _schema(self) -> "pa.Schema":
        """The columns before any verdict, with the units and meanings of numbers as their metadata."""
        import pyarrow as pa

        text, whole, number = pa.string(), pa.int64(), pa.float64()
        spoken = pa.struct([("start", number), ("end", number)])
        kinds = [
            *((name, text) for name in (CLIP, "source", "name", "video_path", "sha256", "unit")),
            *(("start", number), ("frames", whole), ("fps", number)),
            *((name, whole) for name in ("crop_x", "crop_y", "crop_width", "crop_height", "width", "height")),
            *((name, whole) for name in ("pad_width", "pad_height")),
            *(("kind", text), ("shots", whole), ("cuts", pa.list_(number)), ("speech", pa.list_(spoken))),
        ]
        fields = [pa.field(name, kind) for name, kind in kinds]
        for name in self._numbers():
            column = filter_columns()[name]
            about = {"unit": column.unit, "about": column.about, "score": column.score}
            fields.append(pa.field(name, number, metadata=about))
        # What is known only when all clips are together comes into `duplicate_of` and `caption`.
        return pa.schema([*fields, *(pa.field(name, text) for name in ("reasons", "duplicate_of", "caption"))])


def _shared_films(units: Sequence[Unit]) -> set[str]:
    """Digests of films of which several parts are listed, or the whole and a part."""
    parts = {(unit.digest, unit.file.name) for unit in units}
    return {digest for digest, count in Counter(digest for digest, _ in parts).items() if count > 1}


def _place(unit: Unit, clip: ClipWindow) -> Row:
    x, y, width, height = clip.crop or (None, None, None, None)
    pad_width, pad_height = clip.pad or (None, None)
    return {
        "video_path": str(unit.file.path),
        "unit": unit.key,
        "crop_x": x,
        "crop_y": y,
        "crop_width": width,
        "crop_height": height,
        "pad_width": pad_width,
        "pad_height": pad_height,
        "cuts": list(clip.cuts),
        "speech": [{"start": start, "end": end} for start, end in clip.speech],
    }


def _measured(found: Mapping[str, Row]) -> dict[str, Any]:
    return {column: row.get(column) for name, row in found.items() for column in columns_of(name)}


def write_table(table: "pa.Table", path: Path) -> None:
    """A table as a Parquet file, the same bytes for the same rows however they were joined. Raises MovaError."""
    import pyarrow.parquet as pq

    with whole_file(path) as unfinished:
        pq.write_table(table.combine_chunks(), unfinished, compression="zstd", row_group_size=100_000)
