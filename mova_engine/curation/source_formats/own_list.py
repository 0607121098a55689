"""A list of one's own: `video_path`, and where one likes `caption`, and `start` and `end`, the part to look at."""

from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import BadRowError, as_object, required_text, span_of, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat, plain_facts


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    return isinstance(row, dict) and "video_path" in row


def _clips(row: Any) -> list[ListedClip]:
    row = as_object(row)
    name, caption = required_text(row, "video_path"), text_of(row, "caption")
    facts = plain_facts(row, "video_path", "caption", "start", "end")
    given = [row.get(key) not in (None, "") for key in ("start", "end")]
    if given == [True, False]:
        raise BadRowError("has a start and no end")
    if not given[1]:
        return [ListedClip((name,), caption, facts=facts)]
    return [ListedClip((), caption, name, span_of(row.get("start") or 0, row["end"]), facts)]


FORMAT = SourceFormat("a list of one's own", "video_path,caption", _recognises, _clips)
