"""What was measured of each clip, kept by the clip's content: an interrupted run goes on, bytes are judged once."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mova_engine.data.text import flaw, shown
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_file import ClipScores

# What counts as a clip in a folder; other files of it are left out.
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".wav", ".flac", ".mp3", ".m4a", ".ogg")


def find_clips(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """Every media file of a folder and those within it, in order of name; hidden ones and `leave_out` do not count.

    Raises MovaError where there is no folder, or none in it, and for a name that is no text.
    """
    if not folder.is_dir():
        raise MovaError(f"{folder}: not a folder of clips")
    hidden = leave_out.resolve() if leave_out else None
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (hidden is None or not path.resolve().is_relative_to(hidden))
        and path.is_file()
    )
    for path in found:
        if flaw(path.relative_to(folder).as_posix()):
            raise MovaError(f"{shown(str(path))}: the bytes of its name are not UTF-8; rename it")
    if not found:
        raise MovaError(f"{folder}: no clip in it ({', '.join(SUFFIXES)})")
    return found


class ClipRecords:
    """Records in a folder, a file for each content of a clip and each score with its version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def missing(self, digest: str, scores: Iterable[Score]) -> list[Score]:
        """The scores that were not measured yet of a clip with this SHA-256."""
        return [score for score in scores if self._read(digest, score) is None]

    def store(self, digest: str, scores: Iterable[Score], found: ClipScores) -> None:
        """Keep what was measured."""
        for score in scores:
            names = {column.name for column in score.columns}
            record = {
                "score": score.name,
                "version": score.version,
                "values": {name: value for name, value in found.values.items() if name in names},
                "reason": found.reasons.get(score.name),
                "evidence": found.evidence.get(score.name),
                "seconds": found.seconds.get(score.name, 0.0),
            }
            write_atomic(self._path(digest, score), json.dumps(record).encode(), sync=False)

    def read(self, digest: str, score: Score) -> dict[str, Any]:
        """One record. MovaError where it was not measured."""
        found = self._read(digest, score)
        if found is None:
            raise MovaError(f"{score.name} of a clip was not measured")
        return found

    def _read(self, digest: str, score: Score) -> dict[str, Any] | None:
        try:
            found = json.loads(self._path(digest, score).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and found.get("version") == score.version else None

    def _path(self, digest: str, score: Score) -> Path:
        key = hashlib.sha256(f"{digest} {score.name} {score.version}".encode()).hexdigest()[:32]
        return self._folder / key[:2] / f"{key}.json"
