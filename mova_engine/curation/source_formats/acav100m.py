"""ACAV-100M: `SHARD_NAME,FILENAME,YOUTUBE_ID,SEGMENT`, the last one "[start, end]" in seconds; with a head, with the
head as a comment, or without.

By the section "Output File Structure" of the README of sangho-vision/acav100m (Lee et al., ICCV 2021).
"""

import json
from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import BadRowError, span_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat

COLUMNS = ["SHARD_NAME", "FILENAME", "YOUTUBE_ID", "SEGMENT"]


def _is_head(cells: list[str]) -> bool:
    return [cell.strip().lstrip("# ") for cell in cells] == COLUMNS


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    if path.suffix.lower() != ".csv" or len(cells) != len(COLUMNS):
        return False
    return _is_head(cells) or (cells[3].strip().startswith("[") and cells[2] in cells[1])


def _clips(row: Any) -> list[ListedClip]:
    if len(row) != len(COLUMNS):
        raise BadRowError(f"has no four cells: {', '.join(COLUMNS)}")
    if _is_head(row):
        return []
    shard, name, identity, segment = (cell.strip() for cell in row)
    try:
        start, end = json.loads(segment)
    except (ValueError, TypeError):
        raise BadRowError("its SEGMENT is not [start, end]") from None
    if not name or not identity:
        raise BadRowError("has no FILENAME or no YOUTUBE_ID")
    return [ListedClip((f"{shard}/{name}", name), "", identity, span_of(start, end), {"shard": shard})]


LOOKS = 'shard-000009,ID_292.mp4,ID,"[292.3, 302.3]"'
FORMAT = SourceFormat("ACAV-100M", LOOKS, _recognises, _clips, head=False)
