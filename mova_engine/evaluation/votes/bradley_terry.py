"""Strengths of systems from votes: Bradley and Terry's model by maximum likelihood.

    P(left wins) = s(theta_left - theta_right + gamma . x),  s the logistic function, x covariates of the vote

A tie counts as half a win for each. theta is centred: its sum is 0. On the Elo scale a system has 400 log10(e) theta +
1000, so that a difference d gives 1 / (1 + 10^(-d/400)) as the chance to win (Bradley and Terry 1952; Elo 1978; Hunter
2004).
"""

import math
from dataclasses import dataclass

import numpy as np

from mova_engine.evaluation.votes.cast_votes import CastVotes, Floats

# Points of Elo for a unit of theta, and where the centre lies.
ELO, CENTRE = 400 / math.log(10), 1000.0
_STEPS, _HALVINGS, _LONGEST, _SMALL = 80, 8, 2.0, 1e-9
# Keeps a step finite where a redrawn set of votes has no finite strengths; too small to move any that has.
_NO_ZERO = 1e-10


@dataclass(frozen=True)
class FittedStrengths:
    """beta [k + c]: theta of the systems, then the effects of covariates. inverse [k + c, k + c]: of the negative
    Hessian of the log-likelihood (with the prior, if there is one) among centred thetas. residual [n]: score minus its
    expectation. prior_sd: standard deviation in theta of the Gaussian prior, None without.
    """

    votes: CastVotes
    beta: Floats
    inverse: Floats
    residual: Floats
    prior_sd: float | None

    @property
    def scores(self) -> Floats:
        """[n, k + c]: each vote's part of the log-likelihood's gradient."""
        return self.residual[:, None] * self.votes.design()


def fit_strengths(votes: CastVotes, prior_sd: float | None = None) -> FittedStrengths:
    """Fit the model. prior_sd: of a prior N(0, prior_sd^2) on each theta and effect; without one the votes must connect
    all systems both ways, see `vote_graph.unbeaten_groups`, or the strengths grow until the steps end.
    """
    design = votes.design()
    cells, cell = np.unique(design, axis=0, return_inverse=True)
    counts = np.bincount(cell, minlength=len(cells)).astype(np.float64)
    wins = np.asarray(np.bincount(cell, votes.score, len(cells)), np.float64)
    beta = solve_strengths(cells, counts[None], wins[None], len(votes.systems), prior_sd)[0]
    chance = _logistic(cells @ beta)
    hessian = cells.T @ ((counts * chance * (1 - chance))[:, None] * cells)
    inverse = np.linalg.inv(hessian + _held(len(beta), len(votes.systems), prior_sd))
    project = _projector(len(beta), len(votes.systems))
    return FittedStrengths(votes, beta, project @ inverse @ project, votes.score - chance[cell], prior_sd)


def solve_strengths(cells: Floats, counts: Floats, wins: Floats, systems: int, prior_sd: float | None = None) -> Floats:
    """beta [b, k + c] for b weightings of the same kinds of votes, by Newton's method with halved steps.

    cells [m, k + c]: rows of a design. counts, wins [b, m]: how many votes of each kind there are, and won by the left
    one. Where no finite strengths exist, large ones are returned.
    """
    width = cells.shape[1]
    held = _held(width, systems, prior_sd) + _NO_ZERO * np.eye(width)
    prior = 0.0 if prior_sd is None else prior_sd**-2
    squares = (cells[:, :, None] * cells[:, None, :]).reshape(len(cells), width * width)
    beta = np.zeros((len(counts), width))
    running = np.arange(len(counts))
    likelihood = _likelihood(cells, counts, wins, beta, prior)
    for _ in range(_STEPS):
        n, w, b = counts[running], wins[running], beta[running]
        chance = _logistic(b @ cells.T)
        slope = (w - n * chance) @ cells - prior * b
        hessian = ((n * chance * (1 - chance)) @ squares).reshape(-1, width, width) + held
        step = np.linalg.solve(hessian, slope[:, :, None])[:, :, 0]
        step *= np.minimum(1, _LONGEST / np.maximum(np.abs(step).max(1), 1e-30))[:, None]
        for _ in range(_HALVINGS):
            reached = _likelihood(cells, n, w, b + step, prior)
            worse = reached < likelihood[running] - 1e-9 * np.abs(likelihood[running])
            if not worse.any():
                break
            step[worse] /= 2
        else:
            reached = _likelihood(cells, n, w, b + step, prior)
        beta[running] = b + step
        likelihood[running] = reached
        running = running[np.abs(step).max(1) > _SMALL]
        if not len(running):
            break
    beta[:, :systems] -= beta[:, :systems].mean(1, keepdims=True)
    return beta


def _likelihood(cells: Floats, counts: Floats, wins: Floats, beta: Floats, prior: float) -> Floats:
    """[b]: the log-likelihood with the prior's part."""
    eta = beta @ cells.T
    return (wins * eta - counts * np.logaddexp(0, eta)).sum(1) - prior / 2 * (beta**2).sum(1)


def _held(width: int, systems: int, prior_sd: float | None) -> Floats:
    """What is added to the Hessian: the prior, or without one what fixes the sum of thetas, which votes leave open."""
    if prior_sd is not None:
        return np.eye(width) / prior_sd**2
    held = np.zeros((width, width))
    held[:systems, :systems] = 1 / systems
    return held


def _projector(width: int, systems: int) -> Floats:
    project = np.eye(width)
    project[:systems, :systems] -= 1 / systems
    return project


def _logistic(eta: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(eta / 2))
