"""Numbers of a whole set of clips: inception score, distances to a reference, chance levels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mova_engine.data.text import shown
from mova_engine.errors import MovaError
from mova_engine.evaluation.column_summary import CONFIDENCE
from mova_engine.evaluation.measured_clips import MeasuredClips
from mova_engine.ops import resolve
from mova_engine.scores.score_declaration import Score, SetNumber
from mova_engine.scores.score_runner import ScoreRunner

_CHANCE_PAIRS = 200
# Clips whose evidence is held while pairs are drawn.
_HELD = 64


@dataclass(frozen=True)
class SetResult:
    """One number of a set. value None: it could not be had, for `reason`. clips: how many it is of; asked: of how many.

    reference: clips of the reference that it compares with; None for a number without. interval: 95 % of the numbers of
    sets drawn anew from the clips. note: what weakens the number.
    """

    name: str
    unit: str
    about: str
    better: str
    score: str
    clips: int
    asked: int
    reference: int | None
    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    reason: str = ""


def set_results(
    scores: Sequence[Score], clips: MeasuredClips, reference: MeasuredClips | None, runner: ScoreRunner
) -> list[SetResult]:
    """The declared numbers of the set, each with what it is of, or with the reason why there is none."""
    return [
        _set_result(score, number, clips, reference, score.convention(runner.asked))
        for score in scores
        for number in score.set_numbers
    ]


def _set_result(
    score: Score, number: SetNumber, clips: MeasuredClips, reference: MeasuredClips | None, convention: str
) -> SetResult:
    files = clips.with_evidence(score)
    others: list[Path] | None = None
    unclear = ""
    if number.reference and reference is not None:
        others = reference.with_evidence(score)
        if number.reference == "pairs":
            try:
                files, others = _paired(clips, files, reference, others)
            except MovaError as error:
                unclear = str(error)

    def result(**found: Any) -> SetResult:
        about = (number.name, number.unit, number.about, number.better, score.name)
        return SetResult(*about, len(files), len(clips.files), None if others is None else len(others), **found)

    if number.reference and others is None:
        return result(reason="it compares with a folder of real clips: --reference DIR")
    if unclear:
        return result(reason=unclear)
    if not files or others == []:
        paired = number.reference == "pairs" and clips.with_evidence(score) and others is not None
        return result(reason="no clip has one of the same name in the reference" if paired else "no clip was measured")
    own = [clips.evidence(path, score) for path in files]
    real = [reference.evidence(path, score) for path in others] if reference and others is not None else None
    found = number_of_evidence(number, own, real, convention)
    return result(**asdict(found))


@dataclass(frozen=True)
class SetValue:
    """A number of a set: `value` with `interval` and `note` as in SetResult, or the `reason` why there is none."""

    value: float | None = None
    interval: tuple[float, float] | None = None
    note: str = ""
    reason: str = ""


def number_of_evidence(number: SetNumber, own: list[Any], real: list[Any] | None, convention: str) -> SetValue:
    """The number of clips' evidence. real: that of the reference's clips, in pairs the one of each clip in order."""
    function = resolve(number.target)

    def compute(chosen: Sequence[int]) -> tuple[float, str]:
        given: list[Any] = [[own[i] for i in chosen]]
        if real is not None:
            given.append([real[i] for i in chosen] if number.reference == "pairs" else real)
        found = function(*given, convention)
        return found if isinstance(found, tuple) else (found, "")

    try:
        value, note = compute(range(len(own)))
        if not np.isfinite(value):
            raise MovaError(f"it came out as {value}")
    except MovaError as error:
        return SetValue(reason=str(error))
    return SetValue(float(value), _interval(number.resamples, len(own), compute), note)


def _paired(
    clips: MeasuredClips, files: list[Path], reference: MeasuredClips, others: list[Path]
) -> tuple[list[Path], list[Path]]:
    """The clips that have one of the same name in the reference, or one with another suffix, and those. MovaError
    where only the suffix differs and several have the name.
    """
    by_name: dict[str, Path] = {}
    by_stem: dict[PurePosixPath, list[Path]] = {}
    for path in others:
        name = reference.name(path)
        by_name[name] = path
        by_stem.setdefault(PurePosixPath(name).with_suffix(""), []).append(path)
    found: list[tuple[Path, Path]] = []
    for path in files:
        name = clips.name(path)
        alike = [by_name[name]] if name in by_name else by_stem.get(PurePosixPath(name).with_suffix(""), [])
        if len(alike) > 1:
            names = ", ".join(shown(reference.name(each)) for each in alike)
            raise MovaError(f"several clips of the reference have the name of {shown(name)}: {names}")
        found += [(path, each) for each in alike]
    return [path for path, _ in found], [other for _, other in found]


def _interval(resamples: int, count: int, compute: Any) -> tuple[float, float] | None:
    """Percentiles of a number over sets drawn with replacement; None without, and where a set admits no number."""
    if not resamples or count < 2:
        return None
    drawn = np.random.default_rng(0)
    try:
        found = [compute(drawn.integers(0, count, count).tolist())[0] for _ in range(resamples)]
    except MovaError:
        return None
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def chance_levels(score: Score, clips: MeasuredClips, runner: ScoreRunner) -> dict[str, float]:
    """The mean of each number over pairs whose sound and pictures come from different clips; {} without pairs.

    Files of one clip of a bench are no pair; nor, of a score of sound and text, are clips of one caption, which is the
    other sound's own too.
    """
    files = clips.with_evidence(score) if score.chance else []
    contents = [clips.keys[path] for path in files]
    alike = clips.captions if score.prompt else clips.clip_of
    groups = [alike.get(path, "") for path in files] if alike else []

    @lru_cache(_HELD)
    def evidence(i: int) -> Any:
        return clips.evidence(files[i], score)

    found = [runner.chance(score, evidence(i), evidence(j)) for i, j in _pairs(contents, groups)]
    names = {name for each in found for name in each}
    return {name: float(np.mean([each[name] for each in found if name in each])) for name in sorted(names)}


def _pairs(contents: Sequence[str], groups: Sequence[str] = ()) -> list[tuple[int, int]]:
    """Ordered pairs of clips of different contents, and groups if given: all, or as many as are drawn of large sets."""
    both = list(zip(contents, groups or contents, strict=True))
    count = len(both)
    shared = sum(n**2 for n in Counter(contents).values()) + sum(n**2 for n in Counter(x for _, x in both).values())
    allowed = count**2 - shared + sum(n**2 for n in Counter(both).values())
    if allowed <= _CHANCE_PAIRS:
        return [(i, j) for i in range(count) for j in range(count) if _differ(both[i], both[j])]
    drawn = np.random.default_rng(0)
    found: set[tuple[int, int]] = set()
    while len(found) < _CHANCE_PAIRS:
        i, j = (int(each) for each in drawn.integers(0, count, 2))
        if _differ(both[i], both[j]):
            found.add((i, j))
    return sorted(found)


def _differ(first: tuple[str, str], second: tuple[str, str]) -> bool:
    return first[0] != second[0] and first[1] != second[1]
