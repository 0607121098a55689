"""Stand-in: folders."""

from collections.abc import Sequence
from pathlib import Path

from mova_engine.curation.units import SourceFile
from mova_engine.errors import MovaError


def read_sources(raw: Sequence[Path]) -> list[SourceFile]:
    found = []
    for folder in raw:
        if not folder.is_dir():
            raise MovaError(f"{folder}: no such folder")
        for path in sorted(folder.rglob("*")):
            if path.suffix in (".mp4", ".mkv"):
                found.append(
                    SourceFile(path.absolute(), f"{folder.name}/{path.relative_to(folder).as_posix()}", folder.name)
                )
    return found
