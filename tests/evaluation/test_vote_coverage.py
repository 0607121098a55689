"""Intervals hold the truth as often as they say: 100 simulated studies of 500 raters with known strengths."""

import numpy as np
import pytest

from benchmarks.vote_coverage import POPULATIONS, Population, coverage, simulate, true_strengths
from mova_engine.evaluation.votes.bradley_terry import fit_strengths


@pytest.mark.long
def test_the_truth_of_correlated_votes_is_what_many_of_them_give():
    """Leanings pull chances towards one half: the truth is nearer to equal than the strengths of an average rater."""
    leanings = (0.7, 0.7)
    votes = simulate(Population("many", 4000, 4000, 40, leanings), np.random.default_rng(0))
    assert fit_strengths(votes).beta == pytest.approx(true_strengths(leanings), abs=0.04)
    assert np.abs(true_strengths(leanings)).max() < 0.85


@pytest.mark.long
@pytest.mark.parametrize("population", POPULATIONS[:2], ids=lambda each: each.name)
def test_the_truth_lies_within_95_percent_intervals_in_93_of_100_studies(population):
    """All systems at once, and each on the average; where votes are correlated, intervals for independent ones fail."""
    found = coverage(population)
    print(population.name, found)
    assert population.raters == 500 and found.together >= 93
    assert np.mean(found.held["clustered"]) >= 93 and np.mean(found.held["bootstrap"]) >= 92
    naive = np.mean(found.held["sandwich"])
    assert naive >= 93 if population.leanings == (0, 0) else naive < 80
