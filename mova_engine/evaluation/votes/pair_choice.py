"""Which two systems to compare next: the pair from which an answer is expected to tell most."""

from dataclasses import dataclass

import numpy as np

from mova_engine.evaluation.votes.bradley_terry import ELO, solve_strengths
from mova_engine.evaluation.votes.cast_votes import Floats
from mova_engine.evaluation.votes.vote_graph import compared_groups

# Of the strengths, before any vote: wide, so that votes soon outweigh it, and every pair has a finite uncertainty.
_PRIOR_SD = 800 / ELO
# Pairs whose expected gain is within this share of the best are as good.
_ALIKE = 0.02


@dataclass(frozen=True)
class PairGain:
    """Systems by number; gain: expected, in nats; error: standard error of their difference in theta."""

    first: int
    second: int
    gain: float
    error: float


def pair_gains(wins: Floats, pending: Floats | None = None) -> list[PairGain]:
    """All pairs, the one to ask next first.

    wins [k, k]: as of `CastVotes.wins`. pending [k, k]: pairs that are being looked at, symmetric. The gain of a vote
    is that of the joint density of strengths, log(1 + p (1 - p) Var(theta_i - theta_j)) / 2: large where the difference
    is uncertain and the outcome open (D-optimal design). While votes do not connect all systems, pairs that connect
    come first, whatever they tell.
    """
    count = len(wins)
    first, second = np.triu_indices(count, 1)
    cells = np.zeros((len(first), count))
    cells[np.arange(len(first)), first], cells[np.arange(len(first)), second] = 1, -1
    waiting = np.zeros_like(wins) if pending is None else pending
    votes = (wins + wins.T)[first, second]
    theta = solve_strengths(cells, votes[None], wins[first, second][None], count, _PRIOR_SD)[0]
    chance = 0.5 * (1 + np.tanh(cells @ theta / 2))
    open_ = chance * (1 - chance)
    precision = cells.T @ (((votes + waiting[first, second]) * open_)[:, None] * cells) + np.eye(count) / _PRIOR_SD**2
    variance = np.einsum("mp,pq,mq->m", cells, np.linalg.inv(precision), cells)
    gain = np.log1p(open_ * variance) / 2
    group = np.zeros(count, int)
    for number, members in enumerate(compared_groups(wins + waiting)):
        group[members] = number
    across = group[first] != group[second]
    order = np.lexsort((-gain, ~across))
    return [PairGain(int(first[m]), int(second[m]), float(gain[m]), float(np.sqrt(variance[m]))) for m in order]


def choose_pair(
    wins: Floats, pending: Floats, available: np.ndarray, drawn: np.random.Generator
) -> tuple[int, int] | None:
    """The pair to show, of those `available` [k, k] to the rater; None where there is none. Among pairs that are about
    as good chance decides.
    """
    gains = [each for each in pair_gains(wins, pending) if available[each.first, each.second]]
    if not gains:
        return None
    group = {system: n for n, members in enumerate(compared_groups(wins + pending)) for system in members}
    across = [each for each in gains if group[each.first] != group[each.second]]
    gains = across or gains
    best = max(each.gain for each in gains)
    alike = [each for each in gains if each.gain >= best * (1 - _ALIKE)]
    chosen = alike[int(drawn.integers(len(alike)))]
    return chosen.first, chosen.second
