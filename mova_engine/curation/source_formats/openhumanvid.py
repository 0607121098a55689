"""OpenHumanVid: a table, or objects, of clips whose files are called by the film's SHA-256 and the first and last frame
in it, `f404..._010804_010895.mp4`; captions short, long and structured.

The list comes with the files, by form, and its columns are not described in public: the file's name is taken from
`path`, `video_path`, `video`, `name` or `key`, the caption from `structured_caption`, `long_caption`, `caption` or
`short_caption`. File names are those of the README of fudan-generative-vision/OpenHumanVid (Li et al., CVPR 2025).
"""

import re
from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import as_object, required_text, text_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat, plain_facts

FILE_KEYS = ("path", "video_path", "video", "name", "key")
CAPTION_KEYS = ("structured_caption", "long_caption", "caption", "short_caption")
_NAME = re.compile(r"[0-9a-f]{64}_\d+_\d+(\.\w+)?")


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    return isinstance(row, dict) and bool(_NAME.fullmatch(text_of(row, *FILE_KEYS).rsplit("/", 1)[-1]))


def _clips(row: Any) -> list[ListedClip]:
    row = as_object(row)
    facts = plain_facts(row, *FILE_KEYS, *CAPTION_KEYS)
    return [ListedClip((required_text(row, *FILE_KEYS),), text_of(row, *CAPTION_KEYS), facts=facts)]


FORMAT = SourceFormat("OpenHumanVid", "path,caption with SHA256_010804_010895.mp4", _recognises, _clips)
