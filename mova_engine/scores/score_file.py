"""Scores of media files, by the table."""

from collections.abc import Iterable
from pathlib import Path

from mova_engine.errors import MovaError, suggest
from mova_engine.ops import resolve
from mova_engine.scores.score_table import SCORES
from mova_engine.scores.whole_clip import read_whole


def score_file(path: str | Path, names: Iterable[str] = (), fps: float = 24.0) -> dict[str, float]:
    """The named scores of a whole file, all of them without names, at `fps` pictures a second.

    Raises MovaError for an unknown name, a file that cannot be read, and a clip that does not admit a score.
    """
    chosen = tuple(names) or tuple(SCORES)
    for name in chosen:
        if name not in SCORES:
            raise MovaError(f"unknown score '{name}'.{suggest(name, SCORES)} Known: {', '.join(SCORES)}")
    clip, sample_rate = read_whole(path, fps)
    found: dict[str, float] = {}
    for name in chosen:
        measure = resolve(SCORES[name].target)
        try:
            found[name] = float(measure(clip.pictures, clip.audio, fps=fps, sample_rate=sample_rate))
        except MovaError as error:
            raise MovaError(f"{path}: {name}: {error}") from None
    return found
