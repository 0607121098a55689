"""OpenVid-1M: `OpenVid-1M.csv` and `OpenVidHD.csv`: `video`, the file's name, `caption`, and scores in columns whose
names hold spaces (`aesthetic score`, `motion score`, `temporal consistency score`, `camera motion`, `frame`, `fps`,
`seconds`), which become facts.

By the dataset card of nkp37/OpenVid-1M (Nan et al., ICLR 2025).
"""

from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import as_object, required_text, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat, plain_facts


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    return isinstance(row, dict) and {"video", "caption", "aesthetic score"} <= row.keys()


def _clips(row: Any) -> list[ListedClip]:
    row = as_object(row)
    facts = plain_facts(row, "video", "caption")
    return [ListedClip((required_text(row, "video"),), text_of(row, "caption"), facts=facts)]


FORMAT = SourceFormat("OpenVid-1M", "video,caption,aesthetic score,motion score,...", _recognises, _clips)
