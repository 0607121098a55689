"""AutoReCap: JSON lines of one film each: {"ID": {"intervals": [{"start": 1.5, "end": 11.5, "text": "..."}, ...]}}.

By `dataset_preperation/download.py` of snap-research/GenAU (Haji-Ali et al., 2024), which reads the lists and calls the
files of single clips `ID_000.mp4`, `ID_001.mp4` by their place among the film's intervals.
"""

from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import BadRowError, as_object, span_of, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    films = list(row.values()) if isinstance(row, dict) else []
    return bool(films) and all(isinstance(film, dict) and "intervals" in film for film in films)


def _clips(row: Any) -> list[ListedClip]:
    found = list[ListedClip]()
    for identity, film in as_object(row).items():
        intervals = as_object(film).get("intervals")
        if not isinstance(intervals, list):
            raise BadRowError("its intervals are no list")
        for number, interval in enumerate(intervals):
            told = as_object(interval)
            span = span_of(told.get("start"), told.get("end"))
            found.append(ListedClip((f"{identity}_{number:03d}",), text_of(told, "text"), identity, span))
    return found


LOOKS = '{"ID": {"intervals": [{"start": 1.5, "end": 11.5, "text": ""}]}}'
FORMAT = SourceFormat("AutoReCap", LOOKS, _recognises, _clips)
