"""Scores of media files, by the table: each file is decoded once for all of them."""

import time
from collections.abc import Iterable
from pathlib import Path

from mova_engine.data.metadata import CAPTION
from mova_engine.data.text import read_text
from mova_engine.errors import MovaError, suggest
from mova_engine.ops import resolve
from mova_engine.scores.clip_reader import read_clip
from mova_engine.scores.score_declaration import Score
from mova_engine.scores.score_runner import ClipScores, ScoreRunner
from mova_engine.scores.score_table import SCORES

# In place of names: every score, those that are measured only on request too.
EVERY = "all"


def known_score(name: str) -> Score:
    """The score of this name. MovaError for an unknown one."""
    if name not in SCORES:
        raise MovaError(f"unknown score '{name}'.{suggest(name, SCORES)} Known: {', '.join(SCORES)}")
    return SCORES[name]


def chosen_scores(names: Iterable[str], runner: ScoreRunner | None = None) -> tuple[tuple[Score, ...], dict[str, str]]:
    """The named scores, without names all whose weights and packages are at hand but those declared `on_request`; and
    why each of the others is not measured. The name "all" stands for those too.

    Raises MovaError for an unknown name, and for a named score whose weights are missing.
    """
    runner = runner or ScoreRunner()
    names = list(dict.fromkeys(names))
    named = [known_score(name) for name in names if name != EVERY]
    for score in named:
        if reason := runner.lacking(score):
            raise MovaError(f"{score.name} cannot be measured: {reason}")
    if named and EVERY not in names:
        return tuple(named), {}
    wanted = [score for score in SCORES.values() if EVERY in names or not score.on_request]
    skipped = {
        score.name: reason for score in wanted if (reason := runner.lacking(score) or _unchecked(score, score in named))
    }
    return tuple(score for score in wanted if score.name not in skipped), skipped


def _unchecked(score: Score, named: bool) -> str:
    """Why this machine cannot measure a score that is not named, with what installs it; "" where it can."""
    if not named and score.check:
        try:
            resolve(score.check)()
        except MovaError as error:
            return str(error)
    return ""


def score_file(
    path: str | Path, names: Iterable[str] = (), *, runner: ScoreRunner | None = None, prompt: str | None = None
) -> ClipScores:
    """The named scores of a whole file, without names all whose weights are at hand. A score that fails has a reason
    instead of a number.

    The file is decoded in a process of its own, so it cannot end the caller's. Raises MovaError as `chosen_scores`, and
    for a file that cannot be read.
    """
    runner = runner or ScoreRunner()
    scores, _ = chosen_scores(names, runner)
    start = time.perf_counter()
    clip = read_clip(path)
    decode = time.perf_counter() - start
    found = runner.measure(clip, scores, prompt)
    found.seconds = {"decode": decode, **found.seconds}
    return found


def caption_beside(path: str | Path) -> str | None:
    """The caption of a clip that lies in a text file of its name, as in folders of clips; None without."""
    text = Path(path).with_suffix(CAPTION)
    return read_text(text).strip() if text.is_file() else None
