"""A study from its clips to a server that is ready: what is checked, noted in the store and copied before the first
rater.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mova_engine.data.text import read_text, shown
from mova_engine.errors import MovaError, counted
from mova_engine.evaluation.votes.study_clips import StudyClips
from mova_engine.evaluation.votes.study_copies import (
    CheckedClip,
    Copying,
    Key,
    Loudness,
    StudyCopies,
    check_clips,
    length_warnings,
)
from mova_engine.evaluation.votes.vote_session import QUESTIONS, SessionRules, VoteSession
from mova_engine.evaluation.votes.vote_store import VoteStore

if TYPE_CHECKING:
    from fastapi import FastAPI

# Clips that get a damaged copy, which is encoded: some are enough for the checks of many raters.
_DAMAGED = 4
_NAMED = 5


@dataclass(frozen=True)
class StudySettings:
    """How a study is run; the fields are the options of `mova eval vote serve`."""

    questions: Mapping[str, str]
    loudness: Loudness
    copying: Copying
    check_share: float
    goal: int
    seed: int
    raters: frozenset[str] | None
    show_prompts: bool
    tolerance: float
    workers: int


def read_questions(given: tuple[str, ...]) -> dict[str, str]:
    """{name: text} of questions by name, or as "name=text". MovaError for an unknown name or one given twice."""
    found: dict[str, str] = {}
    for each in given:
        name, _, text = each.partition("=")
        text = text.strip() or QUESTIONS.get(name, "")
        if not text:
            known = ", ".join(QUESTIONS)
            raise MovaError(f"--question '{shown(name)}' is none of {known}: give its text, name=\"What is asked?\"")
        if name in found:
            raise MovaError(f"--question {shown(name)} is given twice")
        found[name] = text
    return found


def read_raters(path: Path | None) -> frozenset[str] | None:
    """The names or codes of a file, one a line; None without a file. MovaError for an empty one."""
    if path is None:
        return None
    names = frozenset(" ".join(line.split()) for line in read_text(path).splitlines() if line.strip())
    if not names:
        raise MovaError(f"{path}: has no names")
    return names


def checked_study(
    study: StudyClips, settings: StudySettings, folder: Path | None, say: Callable[[str], None]
) -> dict[Key, CheckedClip]:
    """Check every clip, and say what was found. folder: where it is kept, None for nowhere."""
    say(f"{counted(len(study.systems), 'system')}, {counted(len(study.prompts), 'prompt')}, {len(study.files)} clips")
    if study.lonely:
        say(f"left out, with a clip of one system alone: {_listed(study.lonely)}")
    for system, number in study.missing.items():
        if number:
            say(f"{shown(system)}: no clip for {number} of {counted(len(study.prompts), 'prompt')}")
    if settings.show_prompts and (silent := [prompt for prompt, text in study.prompts.items() if not text]):
        say(f"without a text, so that none is shown: {_listed(silent)}")
    clips = check_clips(study, folder, settings.loudness, settings.copying, settings.workers)
    lines = length_warnings(clips, settings.tolerance)
    for line in lines[:_NAMED]:
        say(f"warning: {line}")
    if len(lines) > _NAMED:
        say(f"warning: and so do those of {counted(len(lines) - _NAMED, 'prompt')} more")
    sizes = {(clip.facts.height, clip.facts.width) for clip in clips.values()}
    if len(sizes) > 1:
        say("warning: clips have several sizes; who knows the systems' sizes can tell them apart")
    if silent := [f"{system}/{prompt}" for (system, prompt), clip in clips.items() if clip.facts.lufs is None]:
        say(f"warning: silent, or nearly: {_listed(silent)}")
    say("every clip can be decoded and shown")
    return clips


def ready_app(
    study: StudyClips, clips: Mapping[Key, CheckedClip], settings: StudySettings, store: VoteStore, folder: Path
) -> "FastAPI":
    """Note the study in the store, make the copies, and give the application. MovaError where the store began
    otherwise.
    """
    from mova_engine.evaluation.votes.vote_server import vote_app

    store.agree("questions", list(settings.questions.items()))
    store.agree("loudness", settings.loudness)
    store.agree("copies", settings.copying)
    facts = {key: (clip.digest, clip.facts.seconds, clip.facts.lufs) for key, clip in clips.items()}
    numbers = store.add_clips(study.prompts, facts)
    copies = StudyCopies(folder, clips, settings.copying, settings.seed)
    drawn = np.random.default_rng(settings.seed)
    chosen = drawn.permutation(len(clips))[:_DAMAGED] if settings.check_share else []
    keys = list(clips)
    damaged = [keys[int(number)] for number in chosen]
    copies.prepare(damaged, settings.workers)
    rules = SessionRules(
        questions=settings.questions,
        seed=settings.seed,
        goal=settings.goal,
        check_share=settings.check_share,
        raters=settings.raters,
        damaged=tuple(numbers[key] for key in damaged),
    )
    by_number = {number: key for key, number in numbers.items()}
    session = VoteSession(store, rules, numbers)
    return vote_app(session, copies, by_number, {"show_prompts": settings.show_prompts})


def _listed(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(shown, names[:_NAMED])) + more
