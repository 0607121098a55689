"""Strengths from votes: closed forms and published numbers, and what has no finite strengths."""

import numpy as np
import pytest

from mova_engine.evaluation.votes.bradley_terry import CENTRE, ELO, fit_strengths, solve_strengths
from mova_engine.evaluation.votes.cast_votes import CastVotes
from mova_engine.evaluation.votes.pair_choice import choose_pair, pair_gains
from mova_engine.evaluation.votes.strength_intervals import strength_covariance, strength_intervals
from mova_engine.evaluation.votes.vote_graph import compared_groups, unbeaten_groups
from mova_engine.evaluation.votes.win_rates import wilson, win_rates

# Wikipedia, "Bradley-Terry model": how often the row beat the column, in 22 games.
GAMES = np.array([[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]])


def votes_of(wins, **more):
    """Votes with so many wins [k, k], the winner on the left."""
    rows = [(i, j) for i in range(len(wins)) for j in range(len(wins)) for _ in range(wins[i][j])]
    left, right = (list(side) for side in zip(*rows, strict=True))
    return CastVotes.plain("ABCD"[: len(wins)], left, right, [1.0] * len(rows), **more)


def test_the_published_example_of_22_games():
    """Elo and standard errors that Arena-Rank's own test states; its errors are those of the inverse Hessian."""
    fitted = fit_strengths(votes_of(GAMES))
    assert np.exp(fitted.beta) == pytest.approx([0.640, 1.043, 0.660, 2.270], abs=5e-4)
    assert CENTRE + ELO * fitted.beta == pytest.approx([922.4, 1007.4, 927.8, 1142.4], abs=0.05)
    errors = strength_intervals(fitted, ELO * np.eye(4), ("information",))["information"].error
    assert errors == pytest.approx([95.2, 83.7, 90.4, 107.9], abs=0.05)


def test_three_wins_of_four_are_190_85_elo():
    wins = [[0, 75], [25, 0]]
    fitted = fit_strengths(votes_of(wins))
    difference = ELO * (fitted.beta[0] - fitted.beta[1])
    assert difference == pytest.approx(400 * np.log10(3)) and difference == pytest.approx(190.85, abs=0.005)
    # Var(log odds) = 1 / (n p q); for two systems the sandwich is the same.
    for kind in ("information", "sandwich"):
        covariance, _ = strength_covariance(fitted, kind)
        assert covariance[0, 0] * 4 == pytest.approx(1 / (100 * 0.75 * 0.25))


def test_a_tie_is_half_a_win_for_each():
    ties = CastVotes.plain("AB", [0, 0, 0, 1], [1, 1, 1, 0], [1, 0.5, 0.5, 0.5])
    assert ties.wins().tolist() == [[0, 2.5], [1.5, 0]]
    assert np.diff(fit_strengths(ties).beta) == pytest.approx([-np.log(2.5 / 1.5)])


def test_sides_do_not_matter_but_as_a_covariate():
    """Who stood left is no part of the model; with `position` a left-hand advantage is found, and strengths stay."""
    drawn = np.random.default_rng(0)
    theta, lean, count = np.array([0.5, 0.0, -0.5]), 0.4, 30_000
    left = drawn.integers(0, 3, count)
    right = (left + drawn.integers(1, 3, count)) % 3
    score = (drawn.random(count) < 1 / (1 + np.exp(-(theta[left] - theta[right] + lean)))).astype(float)
    votes = CastVotes.plain("ABC", left, right, score)
    turned = CastVotes.plain("ABC", right, left, 1 - score)
    assert fit_strengths(votes).beta == pytest.approx(fit_strengths(turned).beta)
    with_side = CastVotes(
        *(getattr(votes, n) for n in ("systems", "left", "right", "score", "rater", "prompt")),
        np.ones((count, 1)),
        ("position",),
    )
    fitted = fit_strengths(with_side)
    interval = strength_intervals(fitted, np.eye(4)[3:], ("sandwich",))["sandwich"]
    assert interval.low[0] < lean < interval.high[0] and interval.high[0] - interval.low[0] < 0.1
    assert fitted.beta[:3] == pytest.approx(theta, abs=0.05)


def test_weightings_solved_together_are_those_solved_alone():
    cells = votes_of(GAMES).design()
    counts = np.random.default_rng(0).integers(1, 5, (7, len(cells))).astype(float)
    wins = counts * np.random.default_rng(1).random(counts.shape)
    together = solve_strengths(cells, counts, wins, 4)
    alone = [solve_strengths(cells, n[None], w[None], 4)[0] for n, w in zip(counts, wins, strict=True)]
    assert together == pytest.approx(np.array(alone), abs=1e-9)
    slope = (wins - counts / (1 + np.exp(-together @ cells.T))) @ cells
    assert np.abs(slope).max() < 1e-6


def test_who_has_no_finite_strength_is_named():
    wins = np.array([[0, 2, 3, 0], [1, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]], float)
    assert compared_groups(wins) == [[0, 1, 2], [3]]
    assert unbeaten_groups(wins[:3, :3]) == [[0, 1], [2]]
    assert unbeaten_groups(GAMES.astype(float)) == [[0, 1, 2, 3]]
    tied = CastVotes.plain("AB", [0], [1], [0.5]).wins()
    assert unbeaten_groups(tied) == [[0, 1]], "a tie is half a loss too"


def test_a_prior_keeps_a_winner_of_all_finite():
    fitted = fit_strengths(votes_of([[0, 9], [0, 0]]), prior_sd=400 / ELO)
    theta = fitted.beta[0]
    # The maximum of 9 log s(2 theta) - theta^2 / sd^2, where both share the prior.
    assert 9 * 2 / (1 + np.exp(2 * theta)) == pytest.approx(2 * theta / (400 / ELO) ** 2)
    found = strength_intervals(fitted, np.eye(2)[:1])
    widths = {kind: float(each.high[0] - each.low[0]) for kind, each in found.items()}
    assert min(widths.values()) >= widths["information"] > 1


def test_votes_of_one_cluster_count_as_one():
    """Each vote copied ten times by its own rater: clustered errors stay, independent ones shrink."""
    single = votes_of(GAMES * 20, rater=np.arange(440))
    copied = CastVotes.plain(
        "ABCD", *(np.repeat(x, 10) for x in (single.left, single.right, single.score, single.rater))
    )
    one, ten = (
        {k: strength_covariance(fit_strengths(v), k)[0] for k in ("clustered", "sandwich")} for v in (single, copied)
    )
    assert ten["clustered"] == pytest.approx(one["clustered"])
    assert ten["sandwich"] == pytest.approx(one["sandwich"] / 10)
    _, freedom = strength_covariance(fit_strengths(copied), "clustered")
    assert freedom == 439, "votes on one prompt tell nothing of prompts; raters are the clusters"


@pytest.mark.parametrize(
    "won, count, low, high",
    # Newcombe (1998), table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_as_published(won, count, low, high):
    assert wilson(won / count, count) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_at_its_ends():
    z2 = 1.959963984540054**2
    assert wilson(0.0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson(1.0, 10) == (pytest.approx(10 / (10 + z2)), 1.0)
    assert wilson(0.5, 4)[0] == pytest.approx(0.5 - np.sqrt(z2) / 2 * np.sqrt(1 / (4 + z2)))
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_win_rates_are_overall_and_by_pair():
    votes = CastVotes.plain("ABC", [0, 1, 0, 2], [1, 0, 1, 0], [1, 1, 0.5, 0])
    rates = {(rate.first, rate.second): (rate.wins, rate.ties, rate.losses, rate.rate) for rate in win_rates(votes)}
    assert rates["A", None] == (2, 1, 1, 0.625) and rates["A", "B"] == (1, 1, 1, 0.5)
    assert rates["C", None] == (0, 0, 1, 0.0) and ("B", "C") not in rates


def test_the_next_pair_connects_first_and_then_tells_most():
    wins = np.zeros((4, 4))
    wins[0, 1] = wins[1, 0] = wins[2, 3] = wins[3, 2] = 5
    first = pair_gains(wins)[0]
    assert first.first in (0, 1) and first.second in (2, 3), "two groups that no vote connects"
    wins[0, 2] = wins[2, 0] = 50
    wins[0, 3] = wins[3, 0] = wins[1, 2] = wins[2, 1] = 50
    best = pair_gains(wins)[0]
    assert (best.first, best.second) == (1, 3), "never compared, and connected on long ways only"
    # A pair whose outcome is certain tells less than one that is open, at the same uncertainty.
    certain = np.array([[0, 30, 15], [0, 0, 15], [15, 15, 0]], float)
    gains = {(each.first, each.second): each.gain for each in pair_gains(certain)}
    assert gains[0, 1] < max(gains.values())


def test_pairs_that_others_look_at_count_as_asked():
    wins, pending, drawn = np.zeros((3, 3)), np.zeros((3, 3)), np.random.default_rng(0)
    available = ~np.eye(3, dtype=bool)
    wins[0, 1] = wins[1, 0] = wins[1, 2] = wins[2, 1] = wins[0, 2] = wins[2, 0] = 2
    pending[0, 1] = pending[1, 0] = 3
    assert {choose_pair(wins, pending, available, drawn) for _ in range(20)} == {(0, 2), (1, 2)}
    available[:2, 2] = available[2, :2] = False
    assert choose_pair(wins, pending, available, drawn) == (0, 1), "the only one that this rater has left"
    assert choose_pair(wins, pending, np.zeros((3, 3), bool), drawn) is None
