"""SpeakerVid-5M: objects of clips of YouTube films: which film, from when to when, and what is said and seen.

Films are published by their YouTube ids, beside annotations in JSON (Zhang et al., arXiv 2507.09862). The keys are not
described in public: the film is taken from `youtube_id`, `ytb_id` or `video_id`, the times from `start` and `end`,
`start_time` and `end_time`, or `timestamp`, a pair; the clip's own file from `clip_id`, `clip` or `name`; the caption
from `caption`. A file may also be one object of {"CLIP": {...}}.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import BadRowError, as_object, required_text, span_of, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat, plain_facts

FILM_KEYS = ("youtube_id", "ytb_id", "video_id")
CLIP_KEYS = ("clip_id", "clip", "name")
TIMES = (("start", "end"), ("start_time", "end_time"))


def _opened(row: Any) -> tuple[str, Mapping[str, Any]]:
    """(the clip's key, "" without one; what is said of it)."""
    told = as_object(row)
    if len(told) == 1:
        key, value = next(iter(told.items()))
        if isinstance(value, Mapping):
            return str(key), value
    return "", told


def _times(row: Mapping[str, Any]) -> tuple[Any, Any] | None:
    pair = row.get("timestamp")
    if isinstance(pair, list | tuple) and len(pair) == 2:
        return pair[0], pair[1]
    return next(((row[start], row[end]) for start, end in TIMES if start in row and end in row), None)


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    try:
        _, told = _opened(row)
    except BadRowError:
        return False
    return bool(text_of(told, *FILM_KEYS)) and _times(told) is not None


def _clips(row: Any) -> list[ListedClip]:
    key, told = _opened(row)
    film, times = required_text(told, *FILM_KEYS), _times(told)
    if times is None:
        raise BadRowError("has no start and end")
    own = text_of(told, *CLIP_KEYS) or key
    facts = plain_facts(told, *FILM_KEYS, *CLIP_KEYS, "caption", "timestamp", *(x for pair in TIMES for x in pair))
    return [ListedClip((own,) if own else (), text_of(told, "caption"), film, span_of(*times), facts)]


FORMAT = SourceFormat("SpeakerVid-5M", '{"youtube_id": "ID", "start": 1, "end": 9, "caption": ""}', _recognises, _clips)
