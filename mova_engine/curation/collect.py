"""Joins what the ledger has of all units to one table of clips, by column: the same bytes for the same results."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_prints import Prints
from mova_engine.curation.cut_signals import SIGNAL_COLUMNS
from mova_engine.curation.filter_columns import columns_of, filter_columns
from mova_engine.curation.ledger import CLIP, Ledger, facts_of
from mova_engine.curation.unit_run import UnitWork, prompt_digest
from mova_engine.curation.units import Unit
from mova_engine.files.atomic import whole_file
from mova_engine.scores.score_table import SCORES

if TYPE_CHECKING:
    import pyarrow as pa

# Units whose columns are joined at a time.
_UNITS = 200


@dataclass(frozen=True)
class Collected:
    """table: a row for each clip, without verdicts; prints: {clip_id: its fingerprints}; seconds: of the units that
    were cut.
    """

    table: "pa.Table"
    prints: Prints
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
        prints: dict[str, tuple[str | None, str | None]] = {}
        for first in range(0, len(units), _UNITS):
            batch = _Batch(schema, self._numbers())
            for unit in units[first : first + _UNITS]:
                cut = self.ledger.table(self.work.steps.cut, unit.key)
                if cut is None:
                    continue
                facts = facts_of(cut)
                seconds += float(facts["seconds"])
                if unit.digest in shared:
                    own = [clip not in seen for clip in cut[CLIP].to_pylist()]
                    cut = cut.filter(pa.array(own, pa.bool_()))
                    seen.update(cut[CLIP].to_pylist())
                scores = {name: self._scores(name, unit) for name in self.work.steps.scores}
                batch.add(unit, cut, facts, scores, self.failed.get(unit.key))
                self._add_prints(prints, unit)
            parts.append(batch.table())
        return Collected(pa.concat_tables(parts) if parts else schema.empty_table(), prints, seconds)

    def _scores(self, name: str, unit: Unit) -> "pa.Table | None":
        """What the ledger has of a score, as `read_scores` does; None where that is nothing."""
        table, pc = self.ledger.table(self.work.steps.scores[name], unit.key), compute()
        if table is None:
            return None
        if "prompt" not in table.column_names:
            return None if SCORES[name].prompt else table
        prompts = table["prompt"]
        return table.filter(pc.equal(prompts, prompt_digest(unit)) if SCORES[name].prompt else pc.is_null(prompts))

    def _add_prints(self, prints: dict[str, tuple[str | None, str | None]], unit: Unit) -> None:
        step = self.work.steps.prints
        table = None if step is None else self.ledger.table(step, unit.key)
        if table is not None:
            pictures, sounds = (_texts(table, name) for name in ("pictures", "sound"))
            prints.update(zip(table[CLIP].to_pylist(), zip(pictures, sounds, strict=True), strict=True))

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


class _Batch:
    """Columns of the clips of some units. numbers: names of those that are measured."""

    def __init__(self, schema: "pa.Schema", numbers: Sequence[str]) -> None:
        self._schema = schema
        self._lists: dict[str, list[Any]] = {name: [] for name in schema.names if name not in numbers}
        self._numbers: dict[str, list[Any]] = {name: [] for name in numbers}

    def add(
        self,
        unit: Unit,
        cut: "pa.Table",
        facts: Mapping[str, Any],
        scores: Mapping[str, "pa.Table | None"],
        failed: str | None,
    ) -> None:
        """Append a unit's clips, which are the rows of `cut`. scores: by name, in any order of clips."""
        columns, count = self._lists, len(cut)
        for name, value in (
            ("source", unit.file.source),
            ("name", unit.file.name),
            ("video_path", str(unit.file.path)),
            ("sha256", unit.digest),
            ("unit", unit.key),
            ("caption", unit.file.caption),
            ("duplicate_of", None),
        ):
            columns[name] += [value] * count
        columns[CLIP] += cut[CLIP].to_pylist()
        # Windows as `ClipWindow.as_json` has them.
        windows: list[dict[str, Any]] = json.loads(f"[{','.join(cut['window'].to_pylist())}]") if count else []
        columns["start"] += [_seconds(window["start"]) for window in windows]
        columns["fps"] += [float(window["fps"]) for window in windows]
        for name in ("frames", "kind", "shots", "cuts", "speech"):
            columns[name] += [window[name] for window in windows]
        crops = [window["crop"] for window in windows]
        for place, name in enumerate(("crop_x", "crop_y", "crop_width", "crop_height")):
            columns[name] += [None if crop is None else crop[place] for crop in crops]
        for place, name in ((2, "width"), (3, "height")):
            columns[name] += [facts[name] if crop is None else crop[place] for crop in crops]
        pads = [window["pad"] for window in windows]
        for place, name in enumerate(("pad_width", "pad_height")):
            columns[name] += [None if pad is None else pad[place] for pad in pads]
        self._measured(cut, scores, failed)

    def _measured(self, cut: "pa.Table", scores: Mapping[str, "pa.Table | None"], failed: str | None) -> None:
        """Append the numbers of a unit's clips, and why some are missing."""
        import pyarrow as pa

        found: dict[str, Any] = {name: cut[name] for name in SIGNAL_COLUMNS if name in cut.column_names}
        reasons = [{} if failed is None else {"unit": failed} for _ in range(len(cut))]
        for name, table in scores.items():
            if table is None:
                continue
            rows = _in_order(table, cut[CLIP])
            found |= {column: rows[column] for column in columns_of(name) if column in rows.column_names}
            for row, reason in enumerate(rows["reason"].to_pylist()) if "reason" in rows.column_names else ():
                if reason:
                    reasons[row][name] = reason
        texts = (json.dumps(each, sort_keys=True, ensure_ascii=False) if each else "{}" for each in reasons)
        self._lists["reasons"] += texts
        for name, chunks in self._numbers.items():
            if name in found:
                chunks += found[name].cast(pa.float64()).chunks
            else:
                chunks.append(pa.nulls(len(cut), pa.float64()))

    def table(self) -> "pa.Table":
        """All of it, in the order of the schema."""
        import pyarrow as pa

        arrays = [
            pa.concat_arrays([pa.array([], pa.float64()), *self._numbers[field.name]])
            if field.name in self._numbers
            else _array(self._lists[field.name], field.type)
            for field in self._schema
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)


def _array(values: list[Any], kind: "pa.DataType") -> "pa.Array":
    import pyarrow as pa

    if not pa.types.is_list(kind) or not pa.types.is_struct(kind.value_type):
        return pa.array(values, kind)
    # Stretches of speech, [start, end] each, of every clip.
    ends = np.cumsum([0, *(len(each) for each in values)], dtype=np.int32)
    flat = np.array([edge for each in values for stretch in each for edge in stretch], np.float64).reshape(-1, 2)
    edges = [pa.array(np.ascontiguousarray(column)) for column in flat.T]
    return pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(edges, fields=list(kind.value_type)), type=kind)


def _in_order(table: "pa.Table", clips: "pa.ChunkedArray") -> "pa.Table":
    """The rows of these clips, in their order; of a clip that is not in the table, nulls."""
    if table[CLIP].equals(clips):
        return table
    return table.take(compute().index_in(clips, value_set=table[CLIP]).combine_chunks())


def _texts(table: "pa.Table", name: str) -> list[str | None]:
    return table[name].to_pylist() if name in table.column_names else [None] * len(table)


def _seconds(text: str) -> float:
    """A fraction as text, "3/2" or "3", to the nearest float."""
    whole, _, parts = text.partition("/")
    return int(whole) / int(parts or 1)


def _shared_films(units: Sequence[Unit]) -> set[str]:
    """Digests of films of which several parts are listed, or the whole and a part."""
    parts = {(unit.digest, unit.file.name) for unit in units}
    return {digest for digest, count in Counter(digest for digest, _ in parts).items() if count > 1}


def write_table(table: "pa.Table", path: Path) -> None:
    """A table as a Parquet file, the same bytes for the same rows however they were joined. Raises MovaError."""
    import pyarrow.parquet as pq

    with whole_file(path) as unfinished:
        pq.write_table(table.combine_chunks(), unfinished, compression="zstd", row_group_size=100_000)
