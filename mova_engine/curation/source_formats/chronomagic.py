"""ChronoMagic-Pro and ProH: `Captions/ChronoMagic-Pro.csv`: `videoid`, the file's name without suffix, and its caption
in `name`, or in `caption`.

Files are those of the unpacked ZIP. By the dataset card of BestWishYsh/ChronoMagic-Pro (Yuan et al., NeurIPS 2024), and
the columns of its predecessor ChronoMagic, which are WebVid's: the card does not name those of Pro.
"""

from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import as_object, required_text, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat, plain_facts


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    return isinstance(row, dict) and "videoid" in row and bool({"name", "caption"} & row.keys())


def _clips(row: Any) -> list[ListedClip]:
    row = as_object(row)
    caption = text_of(row, "caption", "name")
    return [ListedClip((required_text(row, "videoid"),), caption, facts=plain_facts(row, "videoid", "caption", "name"))]


FORMAT = SourceFormat("ChronoMagic-Pro", "videoid,name", _recognises, _clips)
