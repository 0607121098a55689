"""Why one clip is kept or not: its numbers with their ranges, what each filter says of them, what they took."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mova_engine.curation.filter_columns import LABELS, FilterColumn, filter_columns
from mova_engine.curation.filter_expression import FilterExpression
from mova_engine.curation.judging import Judging
from mova_engine.curation.stage_seconds import StepSeconds
from mova_engine.data.text import shown
from mova_engine.errors import counted
from mova_engine.scores.score_table import COLUMNS

_LABELS = {column.name for column in LABELS}
_WORDS = {True: "true", False: "false", None: "undecided"}
_BETTER = {"up": ", higher is better", "down": ", lower is better", "": ""}


def measured_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of clips.parquet as filters read it: without the columns that were not measured of the clip."""
    known, reasons = filter_columns(), reasons_of(row)
    return {
        name: value
        for name, value in row.items()
        if value is not None or name not in known or not known[name].score or known[name].score in reasons
    }


def reasons_of(row: Mapping[str, Any]) -> dict[str, str]:
    """{score: why it gives no number}; of a clip whose unit failed, "unit" tells why."""
    return json.loads(row.get("reasons") or "{}")


def explained(row: Mapping[str, Any], judging: Judging, steps: Iterable[StepSeconds] = ()) -> list[str]:
    """Lines about a clip. row: of clips.parquet. steps: what those of its part of the film took."""
    taken = list(steps)
    return [
        *_clip(row),
        "",
        *_verdict(row, judging),
        "",
        *_numbers(row, judging),
        *_sound(row),
        *(["", *_seconds(taken)] if taken else []),
    ]


def _clip(row: Mapping[str, Any]) -> Iterator[str]:
    end = row["start"] + row["frames"] / row["fps"]
    yield f"clip {row['clip_id']}"
    pictures = f"{row['frames']} pictures at {row['fps']:g} a second"
    yield f"{shown(row['name'])} from {row['start']:g} s to {end:g} s, {pictures}"
    crop = "" if row["crop_x"] is None else f", cropped at {row['crop_x']},{row['crop_y']}"
    yield f"{row['width']}x{row['height']}{crop}; {row['kind']}, {counted(row['shots'], 'shot')}"
    if row.get("duplicate_of"):
        yield f"repeats clip {row['duplicate_of']}"
    if row.get("caption"):
        yield f"caption: {shown(row['caption'])}"
    if reason := reasons_of(row).get("unit"):
        yield f"its part of the film failed: {shown(reason)}"


def _verdict(row: Mapping[str, Any], judging: Judging) -> Iterator[str]:
    by = {"drop": "dropped by", "unknown": "unknown, as it cannot be decided:"}
    yield f"{by[row['verdict']]} {row['dropped_by']}" if row["verdict"] in by else "kept"
    measured = measured_row(row)
    rows = [
        *((each, "filter") for each in judging.judge.filters),
        *((each, "mark") for each in judging.judge.marks),
    ]
    width = max((len(each.name) for each, _ in rows), default=0)
    for each, what in rows:
        decided = _WORDS[each.of_row(measured)]
        yield f"  {what:6} {each.name:{width}}  {decided:9}  {each.text}  ({_values(each, measured)})"


def _values(condition: FilterExpression, measured: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(name, measured)}" for name in condition.columns) or "the same for all clips"


def _value(name: str, measured: Mapping[str, Any]) -> str:
    if name not in measured:
        return "not measured"
    value = measured[name]
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(row: Mapping[str, Any], judging: Judging) -> Iterator[str]:
    measured, reasons, known = measured_row(row), reasons_of(row), filter_columns()
    names = [name for name in row if name in COLUMNS and name not in _LABELS]
    width = max((len(name) for name in names), default=0)
    used: dict[str, list[str]] = {}
    for each in judging.judge.filters:
        for bound in each.thresholds:
            used.setdefault(bound.column, []).append(f"{each.name} wants {bound.sign} {bound.value:g}")
    for name in names:
        column = known[name]
        if name not in measured:
            dropped = f": {row['dropped_by']} dropped the clip before" if row["verdict"] == "drop" else ""
            said = f"not measured{dropped}"
        elif measured[name] is None:
            said = f"none: {shown(reasons.get(column.score, 'the clip does not admit it'))}"
        else:
            said = f"{measured[name]:.4g}{f' {column.unit}' if column.unit else ''}"
        by = f"; {', '.join(used[name])}" if name in used else ""
        yield f"  {name:{width}}  {said}  [{_range(column)}] {column.about}{_BETTER[COLUMNS[name].better]}{by}"


def _range(column: FilterColumn) -> str:
    low, high = ("" if bound is None else f"{bound:g}" for bound in (column.low, column.high))
    if low and high:
        return f"{low} to {high}"
    return f"{low} or more" if low else f"{high} or less" if high else "any number"


def _sound(row: Mapping[str, Any]) -> Sequence[str]:
    shift, gain = row.get("sound_shift") or 0.0, row.get("gain_db") or 0.0
    lines: list[str] = []
    if shift:
        lines.append(f"  its sound is moved {abs(shift) * 1000:.0f} ms {'later' if shift > 0 else 'earlier'}")
    if gain:
        lines.append(f"  its sound is made {abs(gain):g} dB {'louder' if gain > 0 else 'softer'}")
    return lines


def _seconds(steps: Iterable[StepSeconds]) -> Iterator[str]:
    yield "seconds of its part of the film"
    for each in steps:
        yield f"  {each.step:18} {each.seconds:.2f} for {counted(each.clips, 'clip')}, {each.per_clip:.3f} a clip"
