"""VGGSound: `vggsound.csv`, "YouTube ID, start seconds, label, train/test split", without a head; clips of ten seconds.

By the README of the repository hche11/VGGSound (Chen et al., ICASSP 2020). Files of single clips are called by id and
start: `ID_000030.mp4` as its loaders have them, `ID_30.mp4`, or `ID_30000_40000.mp4` in milliseconds.
"""

import re
from pathlib import Path
from typing import Any

from mova_engine.curation.list_rows import BadRowError, span_of
from mova_engine.curation.source_formats import ListedClip, SourceFormat

SECONDS = 10
_ID = re.compile(r"[\w-]{11}")


def _recognises(path: Path, row: Any, cells: list[str]) -> bool:
    four = path.suffix.lower() == ".csv" and len(cells) == 4
    return four and bool(_ID.fullmatch(cells[0])) and cells[1].strip().isdecimal() and cells[3].strip() in _SPLITS


def _clips(row: Any) -> list[ListedClip]:
    if len(row) != 4:
        raise BadRowError("has no four cells: YouTube ID, start seconds, label, split")
    identity, start, label, split = (cell.strip() for cell in row)
    if not _ID.fullmatch(identity):
        raise BadRowError("its YouTube ID has not 11 letters")
    if not start.isdecimal():
        raise BadRowError("its start is no whole number of seconds")
    begin = int(start)
    ms = f"{identity}_{1000 * begin}_{1000 * (begin + SECONDS)}"
    names = (f"{identity}_{begin:06d}", f"{identity}_{begin}", ms)
    return [ListedClip(names, label, identity, span_of(begin, begin + SECONDS), {"split": split})]


_SPLITS = ("train", "test")
FORMAT = SourceFormat("VGGSound", "ID,30,waterfall burbling,train", _recognises, _clips, head=False)
