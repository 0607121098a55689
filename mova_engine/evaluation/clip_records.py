"""What was measured of each clip, kept by the clip's content: an interrupted run goes on, bytes are judged once."""

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mova_engine.data.text import flaw, shown
from mova_engine.errors import MovaError
from mova_engine.files.atomic import write_atomic
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ClipScores, ScoreRunner

# What counts as a clip in a folder; other files of it are left out.
SUFFIXES = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v", ".wav", ".flac", ".mp3", ".m4a", ".ogg")
# The key of an object that stands for an array of evidence, which lies in a file of its own.
_ARRAY = "__array__"
# What a record has, whatever else it tells.
_KEYS = {"score", "values", "reason", "evidence", "seconds", "decode_seconds"}


def find_clips(folder: Path, leave_out: Path | None = None) -> list[Path]:
    """Every media file of a folder and those within it, in order of name; hidden ones and `leave_out` do not count.

    Links to folders are followed. What has a media file's name and is none, such as a link to nothing, is among them:
    that it cannot be read is told where it is read. Raises MovaError where there is no folder, or none in it, for a
    folder that cannot be read, and for a name that is no text.
    """
    if not folder.is_dir():
        raise MovaError(f"{folder}: not a folder of clips")
    hidden = leave_out.resolve() if leave_out else None
    seen: set[str] = set()
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(place)
        again = real in seen or (hidden is not None and Path(real).is_relative_to(hidden))
        seen.add(real)
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        names = [] if again else [name for name in files if not name.startswith(".")]
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    for path in found:
        if flaw(path.relative_to(folder).as_posix()):
            raise MovaError(f"{shown(str(path))}: the bytes of its name are not UTF-8; rename it")
    if not found:
        raise MovaError(f"{folder}: no clip in it ({', '.join(SUFFIXES)})")
    return sorted(found)


def _refuse(error: OSError) -> None:
    raise MovaError(f"{error.filename}: cannot be read ({error.strerror})") from None


class ClipRecords:
    """Records in a folder, one for each content of a clip and each score as a runner measures it.

    A record belongs to the score's version, its convention, its weights' SHA-256 and, where the score reads it, the
    clip's caption: with others, a clip is measured anew. Evidence that is an array lies beside the record.
    """

    def __init__(self, folder: Path, runner: ScoreRunner) -> None:
        self._folder, self._runner = folder, runner
        self._facts: dict[str, str] = {}

    def convention(self, score: Score) -> str:
        """The convention that a score's records follow."""
        return score.convention(self._runner.asked)

    def missing(self, digest: str, scores: Iterable[Score], prompt: str | None = None) -> list[Score]:
        """The scores that were not measured yet of a clip with this SHA-256."""
        return [score for score in scores if self.find(digest, score, prompt) is None]

    def store(self, digest: str, scores: Iterable[Score], found: ClipScores, prompt: str | None = None) -> None:
        """Keep what was measured, but for what failed for a reason that passes."""
        for score in scores:
            if score.name in found.passing:
                continue
            names = {column.name for column in score.columns}
            arrays: dict[str, np.ndarray] = {}
            record = {
                "score": score.name,
                **self._runner.facts(score),
                "device": self._runner.backend.name if score.weights else "cpu",
                "values": {name: value for name, value in found.values.items() if name in names},
                "reason": found.reasons.get(score.name),
                "evidence": _without_arrays(found.evidence.get(score.name), arrays),
                "seconds": found.seconds.get(score.name, 0.0),
                "decode_seconds": found.seconds.get("decode", 0.0),
            }
            path = self._path(digest, score, prompt)
            if arrays:
                write_atomic(path.with_suffix(".npz"), _packed(arrays), sync=False)
            write_atomic(path, json.dumps(record).encode(), sync=False)

    def find(self, digest: str, score: Score, prompt: str | None = None) -> dict[str, Any] | None:
        """One record; None where it was not measured. Its evidence is read by `evidence`."""
        path = self._path(digest, score, prompt)
        try:
            text = path.read_text()
            found = json.loads(text)
        except (OSError, ValueError):
            return None
        if not _is_record(found, score) or (_ARRAY in text and not path.with_suffix(".npz").is_file()):
            return None
        return found

    def evidence(self, digest: str, score: Score, prompt: str | None = None) -> Any:
        """What a score keeps of a clip beside its numbers; None where it keeps none or was not measured.

        Raises MovaError for a damaged file.
        """
        found = self.find(digest, score, prompt)
        if found is None or found["evidence"] is None:
            return None
        path = self._path(digest, score, prompt).with_suffix(".npz")
        try:
            arrays = dict(np.load(path)) if path.is_file() else {}
            return _with_arrays(found["evidence"], arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise MovaError(f"{path} is damaged ({error}); delete it to measure its clip anew") from None

    def _path(self, digest: str, score: Score, prompt: str | None) -> Path:
        if score.name not in self._facts:
            self._facts[score.name] = json.dumps(self._runner.facts(score), sort_keys=True)
        read = hashlib.sha256((prompt or "").encode()).hexdigest() if score.prompt else ""
        told = f"{digest} {score.name} {self._facts[score.name]} {read}"
        key = hashlib.sha256(told.encode()).hexdigest()[:32]
        return self._folder / key[:2] / f"{key}.json"


def _is_record(found: Any, score: Score) -> bool:
    """Whether JSON is a whole record of a score: what a fault of the disk, or a hand, made of one is measured anew."""
    if not isinstance(found, dict) or not found.keys() >= _KEYS or found["score"] != score.name:
        return False
    numbers = [found["seconds"], found["decode_seconds"], *_values(found["values"])]
    return isinstance(found["reason"], str | None) and all(
        isinstance(each, int | float) and math.isfinite(each) for each in numbers
    )


def _values(values: Any) -> list[Any]:
    return list(values.values()) if isinstance(values, dict) else [None]


def _without_arrays(evidence: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Evidence as JSON knows it; its arrays go to `arrays`."""
    if isinstance(evidence, np.ndarray):
        name = f"a{len(arrays)}"
        arrays[name] = evidence
        return {_ARRAY: name}
    if isinstance(evidence, Mapping):
        return {str(key): _without_arrays(value, arrays) for key, value in evidence.items()}
    if isinstance(evidence, list | tuple):
        return [_without_arrays(value, arrays) for value in evidence]
    return evidence


def _with_arrays(evidence: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(evidence, dict):
        if evidence.keys() == {_ARRAY}:
            return arrays[evidence[_ARRAY]]
        return {key: _with_arrays(value, arrays) for key, value in evidence.items()}
    return [_with_arrays(value, arrays) for value in evidence] if isinstance(evidence, list) else evidence


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # pyright: ignore[reportArgumentType] names, not options
    return buffer.getvalue()
