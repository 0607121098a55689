"""Intervals for strengths, by how the votes are taken to depend on each other.

Every kind is of contrasts: rows [q, k + c] by which the model's parameters become a difference, an Elo, an effect.

information: inverse Hessian; votes independent and the model true.
sandwich: H^-1 G H^-1 with G of single votes; votes independent, the model an approximation (White 1982).
clustered: the same with G = G_raters + G_prompts - G_both, where votes of one rater, and on one prompt, may depend on
each other (Cameron, Gelbach and Miller 2011); quantiles of Student's t with the smaller number of clusters less 1.
bootstrap: raters drawn anew, prompts drawn anew and votes drawn anew, each with the model fitted again; on either side
the widths join as w^2 = w_raters^2 + w_prompts^2 - w_votes^2, the identity of `clustered`, and are at least the widest
of them.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from scipy.stats import norm, t

from mova_engine.evaluation.votes.bradley_terry import FittedStrengths, solve_strengths
from mova_engine.evaluation.votes.cast_votes import CastVotes, Floats, Whole

Kind = Literal["clustered", "bootstrap", "sandwich", "information"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BESIDE: tuple[Kind, ...] = ("clustered", "bootstrap", "sandwich")
CONFIDENCE = 0.95
DRAWS = 400
_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class StrengthIntervals:
    """Of one kind, for contrasts [q]: low, high; error: the standard error, None for the bootstrap. freedom: degrees of
    freedom of t, None for a normal distribution.
    """

    kind: Kind
    low: Floats
    high: Floats
    error: Floats | None = None
    freedom: int | None = None


def strength_intervals(
    fitted: FittedStrengths, contrasts: Floats, kinds: tuple[Kind, ...] = KINDS, seed: int = 0, draws: int = DRAWS
) -> dict[Kind, StrengthIntervals]:
    """The intervals of each kind for contrasts [q, k + c]. seed, draws: of the bootstrap."""
    found: dict[Kind, StrengthIntervals] = {}
    centre = contrasts @ fitted.beta
    for kind in kinds:
        if kind == "bootstrap":
            low, high = _bootstrap(fitted, contrasts, seed, draws)
            least = quantile(None) * _least(fitted, contrasts)
            found[kind] = StrengthIntervals(kind, np.minimum(low, centre - least), np.maximum(high, centre + least))
            continue
        error, freedom = standard_errors(fitted, contrasts, kind), strength_covariance(fitted, kind)[1]
        half = quantile(freedom) * error
        found[kind] = StrengthIntervals(kind, centre - half, centre + half, error, freedom)
    return found


def shown_kinds(chosen: Kind) -> list[Kind]:
    """The kinds that tables show, the chosen one first."""
    return [chosen, *(kind for kind in _BESIDE if kind != chosen)]


def strength_covariance(fitted: FittedStrengths, kind: Kind) -> tuple[Floats, int | None]:
    """Covariance [k + c, k + c] of the parameters, and the degrees of freedom of its intervals (None: normal)."""
    if kind == "information":
        return fitted.inverse, None
    scores, votes = fitted.scores, fitted.votes
    alone = fitted.inverse @ (scores.T @ scores) @ fitted.inverse
    parts = [_cluster_sum(scores, _numbered(each)) for each in (votes.rater, votes.prompt)]
    parts = [sums for sums in parts if len(sums) > 1]
    if kind == "sandwich" or not parts:
        return alone, None
    middle = sum(len(sums) / (len(sums) - 1) * sums.T @ sums for sums in parts)
    if len(parts) == 2:
        both = _cluster_sum(scores, _numbered(_numbered(votes.rater) * len(votes) + _numbered(votes.prompt)))
        middle = middle - both.T @ both
    return _without_negative(fitted.inverse @ middle @ fitted.inverse), min(map(len, parts)) - 1


def quantile(freedom: int | None) -> float:
    """How many standard errors an interval reaches on either side."""
    return float(norm.ppf(1 - _TAIL) if freedom is None else t.ppf(1 - _TAIL, freedom))


def standard_errors(fitted: FittedStrengths, contrasts: Floats, kind: Kind) -> Floats:
    """Of contrasts [q, k + c]; the bootstrap, which has none, is answered as `clustered`."""
    alone = _errors(strength_covariance(fitted, "sandwich" if kind != "information" else kind)[0], contrasts)
    error = np.maximum(alone, _least(fitted, contrasts))
    if kind in ("information", "sandwich"):
        return error
    # A difference of noisy sums: where few clusters make it small, votes alone would already be less certain.
    return np.maximum(error, _errors(strength_covariance(fitted, "clustered")[0], contrasts))


def simultaneous_half(fitted: FittedStrengths, contrasts: Floats, kind: Kind, seed: int = 0) -> Floats:
    """Half widths [q] of intervals for all contrasts at once: in 95 % of studies none of them misses.

    So many standard errors as the 95 % quantile of the largest standardised deviation (sup-t), by 20,000 draws.
    """
    covariance, freedom = strength_covariance(fitted, "clustered" if kind == "bootstrap" else kind)
    joint = contrasts @ covariance @ contrasts.T
    error = np.sqrt(np.maximum(0, np.diag(joint)))
    known = error > 1e-9 * error.max(initial=0)
    factor = quantile(freedom)
    if known.sum() > 1:
        values, vectors = np.linalg.eigh(joint[np.ix_(known, known)] / np.outer(error[known], error[known]))
        drawn = np.random.default_rng(seed)
        normal = drawn.standard_normal((20_000, len(values))) @ (vectors * np.sqrt(np.maximum(0, values))).T
        largest = np.abs(normal).max(1)
        if freedom is not None:
            largest /= np.sqrt(drawn.chisquare(freedom, len(largest)) / freedom)
        factor = float(np.quantile(largest, CONFIDENCE))
    return factor * standard_errors(fitted, contrasts, kind)


def _least(fitted: FittedStrengths, contrasts: Floats) -> Floats:
    """With a prior the spread of votes can be nothing, where a system won every one: uncertainty is then the
    posterior's at least.
    """
    return _errors(fitted.inverse, contrasts) if fitted.prior_sd is not None else np.zeros(len(contrasts))


def _errors(covariance: Floats, contrasts: Floats) -> Floats:
    return np.sqrt(np.maximum(0, np.einsum("qp,pr,qr->q", contrasts, covariance, contrasts)))


def _bootstrap(fitted: FittedStrengths, contrasts: Floats, seed: int, draws: int) -> tuple[Floats, Floats]:
    votes, centre = fitted.votes, contrasts @ fitted.beta
    drawn = np.random.default_rng(seed)
    cells, cell = np.unique(votes.design(), axis=0, return_inverse=True)
    sides = []
    for groups in (votes.rater, votes.prompt, None):
        number = None if groups is None else _numbered(groups)
        if number is not None and number.max(initial=0) == 0:
            continue
        counts, wins = _redrawn(votes, cell, len(cells), number, draws, drawn)
        # Where a draw has no finite strengths the prior's absence shows as a wide interval, which it is.
        values = solve_strengths(cells, counts, wins, len(votes.systems), fitted.prior_sd) @ contrasts.T
        low, high = np.quantile(values, [_TAIL, 1 - _TAIL], axis=0)
        sides.append(np.maximum(0, np.stack([centre - low, high - centre])))
    *clusters, single = sides
    if not clusters:
        joined = single
    elif len(clusters) == 1:
        joined = clusters[0]
    else:
        squared = clusters[0] ** 2 + clusters[1] ** 2 - single**2
        joined = np.sqrt(np.maximum(squared, np.maximum(clusters[0], clusters[1]) ** 2))
    return centre - joined[0], centre + joined[1]


def _redrawn(
    votes: CastVotes, cell: Whole, cells: int, groups: Whole | None, draws: int, drawn: np.random.Generator
) -> tuple[Floats, Floats]:
    """Counts and wins [draws, cells] of groups, or of single votes, drawn with replacement."""
    if groups is None:
        # Votes of one kind and answer are exchangeable: their numbers are multinomial.
        kind = cell * 3 + np.round(2 * votes.score).astype(np.int64)
        present = np.bincount(kind, minlength=3 * cells)
        tables = drawn.multinomial(len(votes), present / len(votes), draws).reshape(draws, cells, 3)
        return np.asarray(tables.sum(2), np.float64), np.asarray(tables @ np.array([0.0, 0.5, 1.0]), np.float64)
    size = int(groups.max()) + 1
    place = groups * cells + cell
    counts = np.bincount(place, minlength=size * cells).reshape(size, cells).astype(np.float64)
    wins = np.asarray(np.bincount(place, votes.score, size * cells), np.float64).reshape(size, cells)
    weights = np.asarray(drawn.multinomial(size, np.full(size, 1 / size), draws), np.float64)
    return np.asarray(weights @ counts), np.asarray(weights @ wins)


def _cluster_sum(scores: Floats, number: Whole) -> Floats:
    """[clusters, k + c]: the sums of votes' scores in each cluster."""
    count = int(number.max(initial=-1)) + 1
    return np.stack([np.asarray(np.bincount(number, column, count), np.float64) for column in scores.T], 1)


def _numbered(values: Whole) -> Whole:
    """Numbers from 0 on in place of any."""
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _without_negative(covariance: Floats) -> Floats:
    """The difference of three parts can have negative variances where clusters are few: those become 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return (vectors * np.maximum(0, values)) @ vectors.T
