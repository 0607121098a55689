"""Scores of media files, by the table: each file is decoded once for all of them."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mova_engine.data.media.reader_process import in_reader_process
from mova_engine.errors import MovaError, suggest
from mova_engine.ops import resolve
from mova_engine.scores.decoded_clip import DecodedClip, Measured
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_table import SCORES


@dataclass
class ClipScores:
    """values: {column: number} of what could be measured; reasons: {score: why} of what could not; seconds: {score:
    time}, with "decode" for reading the file; evidence: {score: what its chance level is computed from}.
    """

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)


def chosen_scores(names: Iterable[str]) -> tuple[Score, ...]:
    """The named scores, all of them without names. MovaError for an unknown name."""
    chosen = tuple(names) or tuple(SCORES)
    for name in chosen:
        if name not in SCORES:
            raise MovaError(f"unknown score '{name}'.{suggest(name, SCORES)} Known: {', '.join(SCORES)}")
    return tuple(SCORES[name] for name in chosen)


@in_reader_process
def score_file(path: str | Path, names: Iterable[str] = ()) -> ClipScores:
    """The named scores of a whole file, all of them without names. A score that fails has a reason instead of a number.

    It runs in a process of its own, so no file can end the caller's. Raises MovaError for an unknown name, and for a
    file that cannot be read.
    """
    scores = chosen_scores(names)
    found = ClipScores()
    start = time.perf_counter()
    clip = DecodedClip.read(path)
    found.seconds["decode"] = time.perf_counter() - start
    for score in scores:
        start = time.perf_counter()
        try:
            measured = resolve(score.target)(clip)
            evidence = None
            if isinstance(measured, Measured):
                evidence, measured = measured.evidence, measured.values
            _check(score, measured)
        except MovaError as error:
            found.reasons[score.name] = str(error)
        else:
            if evidence is not None:
                found.evidence[score.name] = evidence
            found.values |= measured
        found.seconds[score.name] = time.perf_counter() - start
    return found


def _check(score: Score, measured: dict[str, float]) -> None:
    """MovaError for a number that is none, as of samples far beyond full scale: this clip has no score then.

    A number that no column declares is a fault of the score's function.
    """
    unknown = measured.keys() - {column.name for column in score.columns}
    if unknown:
        raise RuntimeError(f"score {score.name} returned {', '.join(sorted(unknown))}, which it does not declare")
    for name, value in measured.items():
        if not math.isfinite(value):
            raise MovaError(f"{name} came out as {value}")
