"""What the votes of a store say: systems with intervals, win rates, effects, and what to ask next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from mova_engine.data.text import shown
from mova_engine.errors import MovaError, suggest
from mova_engine.evaluation.votes.bradley_terry import CENTRE, ELO, FittedStrengths, fit_strengths
from mova_engine.evaluation.votes.cast_votes import CastVotes
from mova_engine.evaluation.votes.pair_choice import pair_gains
from mova_engine.evaluation.votes.rater_checks import CastVote
from mova_engine.evaluation.votes.strength_intervals import (
    KINDS,
    Kind,
    simultaneous_half,
    standard_errors,
    strength_intervals,
)
from mova_engine.evaluation.votes.vote_graph import compared_groups, unbeaten_groups
from mova_engine.evaluation.votes.vote_store import VoteStore
from mova_engine.evaluation.votes.win_rates import WinRate, win_rates

Covariate = Literal["position", "loudness", "length"]
# In Elo: of the prior that keeps strengths finite where a system won, or lost, every vote.
SEPARABLE_PRIOR = 400.0
_SCORES = {"left": 1.0, "right": 0.0, "tie": 0.5, "bad": 0.5}
_ALPHA = 0.05
# Elo; an interval wider than this tells that some draws of the bootstrap had no finite strengths.
_UNBOUNDED = 3000.0


@dataclass(frozen=True)
class Anchor:
    """A system whose Elo is given."""

    system: str
    elo: float


@dataclass(frozen=True)
class SystemRow:
    """elo, and its 95 % intervals by kind. simultaneous: the interval of all systems at once. rank: the best and the
    worst place that the simultaneous intervals of differences allow. bad: share of "both bad" among its votes.
    """

    system: str
    elo: float
    intervals: dict[Kind, tuple[float, float]]
    errors: dict[Kind, float]
    simultaneous: tuple[float, float]
    rank: tuple[int, int]
    votes: int
    bad: float


@dataclass(frozen=True)
class PairRow:
    """difference: first minus second in Elo, with the interval of the chosen kind. decided: whether the difference is
    one however often it was looked at on the way. more: votes on this pair after which it may be, None for more than
    ten times as many as there are.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float]
    decided: bool
    more: int | None


@dataclass(frozen=True)
class EffectRow:
    """What a covariate does, in Elo for a unit, and its interval. With 0 in it the votes show no such effect."""

    name: Covariate
    unit: str
    elo: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class QuestionResult:
    """Of one question. kind: the intervals that tables show. neighbours: systems next to each other in the table.
    next_pairs: what to ask next, the most telling first. notes: what a reader must know.
    """

    question: str
    votes: int
    ties: int
    bad: int
    raters: int
    prompts: int
    kind: Kind
    prior: float | None
    systems: tuple[SystemRow, ...]
    neighbours: tuple[PairRow, ...]
    effects: tuple[EffectRow, ...]
    rates: tuple[WinRate, ...]
    next_pairs: tuple[tuple[str, str, float], ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class AnalysisSettings:
    """prior: standard deviation in Elo, None for none but where it is needed. planned: votes that the study was planned
    for, which tunes the rule of stopping.
    """

    kind: Kind = "clustered"
    prior: float | None = None
    anchor: Anchor | None = None
    adjust: tuple[Covariate, ...] = ()
    systems: tuple[str, ...] = ()
    planned: int = 1000
    seed: int = 0


def read_votes(store: VoteStore) -> list[CastVote]:
    """Every vote that stands, in the order of their times."""
    rows = store.rows(
        "select votes.id, raters.name as rater, kind, prompts.name as prompt, a.name as left, b.name as right, "
        "damaged, l.lufs as left_lufs, r.lufs as right_lufs, l.seconds as left_seconds, r.seconds as right_seconds, "
        "votes.seconds as took, question, answer from votes join pairs on pairs.id = votes.pair "
        "join raters on raters.id = pairs.rater join clips l on l.id = left_clip join clips r on r.id = right_clip "
        "join systems a on a.id = l.system join systems b on b.id = r.system join prompts on prompts.id = l.prompt "
        "join answers on answers.vote = votes.id where withdrawn is null order by votes.time, votes.id"
    )
    found: dict[str, CastVote] = {}
    for row in rows:
        if row["id"] not in found:
            lufs, seconds = (row["left_lufs"], row["right_lufs"]), (row["left_seconds"], row["right_seconds"])
            what = (row["rater"], row["kind"], row["prompt"], row["left"], row["right"], row["damaged"])
            found[row["id"]] = CastVote(*what, lufs, seconds, {}, row["took"])
        found[row["id"]].answers[row["question"]] = row["answer"]
    return list(found.values())


def analyse(votes: Sequence[CastVote], question: str, settings: AnalysisSettings) -> QuestionResult:
    """Fit one question's votes; attention checks among them do not count.

    Raises MovaError where there are none, for an unknown system, and where votes do not connect the systems, so that no
    common scale exists.
    """
    cast = [vote for vote in votes if vote.kind == "vote" and question in vote.answers]
    arrays = _arrays(cast, question, settings)
    if not len(arrays):
        raise MovaError(f"no votes on '{question}' between two systems yet")
    notes: list[str] = []
    prior = _prior(arrays, settings, notes)
    plain, used = _with(arrays, settings.adjust, cast, notes)
    fitted = fit_strengths(plain, None if prior is None else prior / ELO)
    for what, groups in (("rater", plain.rater), ("prompt", plain.prompt)):
        if len(np.unique(groups)) == 1:
            notes.append(f"all votes are of one {what}: the intervals say nothing of other {what}s")
    answers = [vote.answers[question] for vote in used]
    effects = _effects(arrays, cast, prior, settings)
    systems = _system_rows(fitted, settings, used, question)
    if any(high - low > _UNBOUNDED for low, high in (row.intervals["bootstrap"] for row in systems)):
        notes.append("the bootstrap has no bound: too few votes, some draws leave a system without a win or a loss")
    names = arrays.systems
    gains = pair_gains(arrays.wins())
    return QuestionResult(
        question,
        len(plain),
        answers.count("tie"),
        answers.count("bad"),
        len(np.unique(plain.rater)),
        len(np.unique(plain.prompt)),
        settings.kind,
        prior,
        systems,
        _neighbours(fitted, settings),
        effects,
        tuple(win_rates(plain)),
        tuple((names[each.first], names[each.second], each.error * ELO) for each in gains),
        tuple(notes),
    )


def analyse_if_possible(votes: Sequence[CastVote], question: str, settings: AnalysisSettings) -> QuestionResult | None:
    """As `analyse`; None where these votes admit no table, as when flagged raters' were all there are."""
    try:
        return analyse(votes, question, settings)
    except MovaError:
        return None


def _arrays(cast: Sequence[CastVote], question: str, settings: AnalysisSettings) -> CastVotes:
    names = sorted({name for vote in cast for name in (vote.left, vote.right)})
    place = {name: n for n, name in enumerate(names)}
    raters = {name: n for n, name in enumerate(dict.fromkeys(vote.rater for vote in cast))}
    prompts = {name: n for n, name in enumerate(dict.fromkeys(vote.prompt for vote in cast))}
    votes = CastVotes.plain(
        names,
        [place[vote.left] for vote in cast],
        [place[vote.right] for vote in cast],
        [_SCORES[vote.answers[question]] for vote in cast],
        [raters[vote.rater] for vote in cast],
        [prompts[vote.prompt] for vote in cast],
    )
    wanted = (*settings.systems, *(() if settings.anchor is None else (settings.anchor.system,)))
    for name in wanted:
        if name not in names:
            raise MovaError(f"no votes on system '{shown(name)}'.{suggest(name, names)} Known: {', '.join(names)}")
    if settings.anchor is not None and settings.systems and settings.anchor.system not in settings.systems:
        raise MovaError(f"the anchor '{shown(settings.anchor.system)}' is not among --systems")
    return votes.among(settings.systems) if settings.systems else votes


def _prior(votes: CastVotes, settings: AnalysisSettings, notes: list[str]) -> float | None:
    """The prior's standard deviation in Elo, or None. MovaError for systems that no votes connect."""
    wins, names = votes.wins(), votes.systems
    groups = compared_groups(wins)
    if len(groups) > 1:
        told = "; ".join(", ".join(names[n] for n in group) for group in groups)
        best = pair_gains(wins)[0]
        ask = f"{names[best.first]} with {names[best.second]}"
        raise MovaError(
            f"no votes connect these groups of systems, so no common scale exists: {told}. Compare {ask}, or give one "
            "group's names with --systems"
        )
    levels = unbeaten_groups(wins)
    if len(levels) > 1 and settings.prior is None:
        told = " over ".join(", ".join(names[n] for n in group) for group in levels)
        notes.append(
            f"separable: {told} without a loss or tie the other way, so that no finite strengths fit best; a prior of "
            f"{SEPARABLE_PRIOR:g} Elo was used, which decides how far these lie apart"
        )
        return SEPARABLE_PRIOR
    if settings.prior is not None:
        notes.append(f"with a Gaussian prior of {settings.prior:g} Elo on each strength")
    return settings.prior


def _covariate(name: Covariate, vote: CastVote) -> float:
    """Left minus right; NaN where a clip has none."""
    if name == "position":
        return 1.0
    pair = vote.lufs if name == "loudness" else vote.seconds
    return math.nan if None in pair else float(pair[0] or 0) - float(pair[1] or 0)


_UNITS: dict[Covariate, str] = {"position": "for the left side", "loudness": "per LU louder", "length": "per s longer"}


def _with(
    votes: CastVotes, names: Sequence[Covariate], cast: Sequence[CastVote], notes: list[str]
) -> tuple[CastVotes, list[CastVote]]:
    """Votes with covariates, and the same ones as records; those without a covariate are left out, which is noted."""
    inside = [vote for vote in cast if vote.left in votes.systems and vote.right in votes.systems]
    table = np.array([[_covariate(name, vote) for name in names] for vote in inside]).reshape(len(inside), len(names))
    known = np.asarray(~np.isnan(table).any(1))
    if not known.all():
        notes.append(f"{int((~known).sum())} votes are left out: a clip without loudness cannot be adjusted for it")
    kept = CastVotes(
        votes.systems, votes.left, votes.right, votes.score, votes.rater, votes.prompt, table, tuple(names)
    ).where(known)
    return kept, [vote for vote, use in zip(inside, known.tolist(), strict=True) if use]


def _effects(
    votes: CastVotes, cast: Sequence[CastVote], prior: float | None, settings: AnalysisSettings
) -> tuple[EffectRow, ...]:
    """Each covariate by a fit with it (and those that are adjusted for), where votes differ in it."""
    found: list[EffectRow] = []
    for name in _UNITS:
        names = tuple(dict.fromkeys((*settings.adjust, name)))
        with_it, _ = _with(votes, names, cast, [])
        column = with_it.covariates[:, names.index(name)] if len(with_it) else np.zeros(0)
        # A covariate that always goes with the systems, or hardly varies, cannot be told from them.
        if not len(column) or np.linalg.matrix_rank(with_it.design()) < len(votes.systems) - 1 + len(names):
            continue
        fitted = fit_strengths(with_it, None if prior is None else prior / ELO)
        row = np.zeros((1, len(fitted.beta)))
        row[0, len(votes.systems) + names.index(name)] = ELO
        interval = strength_intervals(fitted, row, (settings.kind,), settings.seed)[settings.kind]
        found.append(
            EffectRow(
                name, _UNITS[name], float(row[0] @ fitted.beta), (float(interval.low[0]), float(interval.high[0]))
            )
        )
    return tuple(found)


def _system_rows(
    fitted: FittedStrengths, settings: AnalysisSettings, cast: Sequence[CastVote], question: str
) -> tuple[SystemRow, ...]:
    names = fitted.votes.systems
    contrasts = np.zeros((len(names), len(fitted.beta)))
    contrasts[:, : len(names)] = np.eye(len(names)) * ELO
    base = CENTRE
    if settings.anchor is not None:
        contrasts[:, names.index(settings.anchor.system)] -= ELO
        base = settings.anchor.elo
    elo = base + contrasts @ fitted.beta
    intervals = strength_intervals(fitted, contrasts, KINDS, settings.seed)
    half = simultaneous_half(fitted, contrasts, settings.kind, settings.seed)
    better = _better(fitted, settings)
    rows = []
    for n, name in enumerate(names):
        own = [vote.answers[question] for vote in cast if name in (vote.left, vote.right)]
        rows.append(
            SystemRow(
                name,
                float(elo[n]),
                {kind: (base + float(each.low[n]), base + float(each.high[n])) for kind, each in intervals.items()},
                {kind: float(each.error[n]) for kind, each in intervals.items() if each.error is not None},
                (float(elo[n] - half[n]), float(elo[n] + half[n])),
                (1 + int(better[:, n].sum()), len(names) - int(better[n].sum())),
                len(own),
                own.count("bad") / max(1, len(own)),
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.elo))


def _better(fitted: FittedStrengths, settings: AnalysisSettings) -> np.ndarray:
    """[k, k]: whether the row's system is better than the column's by the simultaneous intervals of all differences."""
    count = len(fitted.votes.systems)
    first, second = np.triu_indices(count, 1)
    contrasts = np.zeros((len(first), len(fitted.beta)))
    contrasts[np.arange(len(first)), first], contrasts[np.arange(len(first)), second] = 1, -1
    half, centre = simultaneous_half(fitted, contrasts, settings.kind, settings.seed), contrasts @ fitted.beta
    better = np.zeros((count, count), bool)
    better[first, second], better[second, first] = centre > half, -centre > half
    return better


def sequential_factor(votes: int, planned: int) -> float:
    """Standard errors by which an interval must reach that holds at every number of votes at once, not only at one.

    The asymptotic confidence sequence of Waudby-Smith et al. (2021), narrowest at `planned` votes: sqrt(2 (u + 1) / u *
    log(sqrt(u + 1) / alpha)) with u = rho^2 votes, alpha = 0.05.
    """
    tuned = (-2 * math.log(_ALPHA) + math.log(-2 * math.log(_ALPHA)) + 1) / planned
    u = tuned * votes
    return math.sqrt(2 * (u + 1) / u * math.log(math.sqrt(u + 1) / _ALPHA))


def _neighbours(fitted: FittedStrengths, settings: AnalysisSettings) -> tuple[PairRow, ...]:
    votes, names = fitted.votes, fitted.votes.systems
    order = np.argsort(-fitted.beta[: len(names)], kind="stable")
    if len(order) < 2:
        return ()
    contrasts = np.zeros((len(order) - 1, len(fitted.beta)))
    for n, (a, b) in enumerate(pairwise(order)):
        contrasts[n, a], contrasts[n, b] = ELO, -ELO
    interval = strength_intervals(fitted, contrasts, (settings.kind,), settings.seed)[settings.kind]
    error, factor = standard_errors(fitted, contrasts, settings.kind), sequential_factor(len(votes), settings.planned)
    difference, rows = contrasts @ fitted.beta, []
    for n, (a, b) in enumerate(pairwise(order)):
        # Errors shrink with the root of the number of votes.
        times = (factor * float(error[n]) / max(1e-9, float(difference[n]))) ** 2
        more = None if times > 10 else max(0, math.ceil((times - 1) * len(votes)))
        bounds = (float(interval.low[n]), float(interval.high[n]))
        rows.append(PairRow(names[a], names[b], float(difference[n]), bounds, times <= 1, more))
    return tuple(rows)
