"""`python -m benchmarks.vote_coverage`: how often intervals of strengths hold the truth, with simulated raters.

    python -m benchmarks.vote_coverage --out benchmarks/results/vote-coverage.json

Raters with known strengths vote; a system's interval should hold its true strength in 95 of 100 studies. In
"independent" studies all raters and prompts are alike. In "correlated" ones each rater, and each prompt, has leanings
of its own for each system. The truth is then what infinitely many raters and prompts would give, by the same model:
chances are integrated over the leanings (Gauss-Hermite), and the model is fitted to them.
"""

import argparse
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.evaluation.votes.bradley_terry import fit_strengths, solve_strengths
from mova_engine.evaluation.votes.cast_votes import CastVotes
from mova_engine.evaluation.votes.strength_intervals import KINDS, simultaneous_half, strength_intervals
from mova_engine.files.results import write_result

THETA = np.array([1.0, 0.6, 0.2, -0.2, -0.6, -1.0])
STUDIES = 100
TIES = 0.1


@dataclass(frozen=True)
class Population:
    """raters cast `each` votes on `prompts` prompts. leanings: standard deviations in theta, raters' and prompts'."""

    name: str
    raters: int
    prompts: int
    each: int
    leanings: tuple[float, float]


POPULATIONS = (
    Population("independent", 500, 60, 20, (0.0, 0.0)),
    Population("correlated by raters and prompts", 500, 60, 20, (0.5, 0.5)),
    Population("correlated by raters", 500, 60, 20, (0.7, 0.0)),
    Population("correlated by prompts", 500, 60, 20, (0.0, 0.7)),
    Population("correlated, few of both", 12, 20, 40, (0.5, 0.5)),
)


@dataclass(frozen=True)
class Coverage:
    """held: {kind: of 100 studies, those in which a system's interval holds its truth, by system}. together: those in
    which the simultaneous intervals hold all truths. cpu_seconds: of all fits and intervals.
    """

    population: Population
    held: dict[str, list[float]]
    together: float
    cpu_seconds: float


def _logistic(eta: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-eta))


def true_strengths(leanings: tuple[float, float]) -> np.ndarray:
    """What infinitely many votes give."""
    pairs = [(i, j) for i in range(len(THETA)) for j in range(len(THETA)) if i != j]
    cells = np.zeros((len(pairs), len(THETA)))
    for row, (i, j) in enumerate(pairs):
        cells[row, i], cells[row, j] = 1, -1
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    spread = np.sqrt(2 * (leanings[0] ** 2 + leanings[1] ** 2))
    chance = (_logistic((cells @ THETA)[:, None] + spread * nodes) * weights).sum(1) / weights.sum()
    chance = (1 - TIES) * chance + TIES / 2
    return solve_strengths(cells, np.ones((1, len(pairs))), chance[None], len(THETA))[0]


def simulate(population: Population, drawn: np.random.Generator) -> CastVotes:
    """The votes of one study. A tenth are ties, whoever is compared."""
    count, systems = population.raters * population.each, len(THETA)
    rater = np.repeat(np.arange(population.raters), population.each)
    prompt = drawn.integers(0, population.prompts, count)
    of_raters = population.leanings[0] * drawn.standard_normal((population.raters, systems))
    of_prompts = population.leanings[1] * drawn.standard_normal((population.prompts, systems))
    left = drawn.integers(0, systems, count)
    right = (left + drawn.integers(1, systems, count)) % systems
    liking = THETA + of_raters[rater] + of_prompts[prompt]
    rows = np.arange(count)
    won = drawn.random(count) < _logistic(liking[rows, left] - liking[rows, right])
    score = np.where(drawn.random(count) < TIES, 0.5, won)
    return CastVotes.plain([f"system {n}" for n in range(systems)], left, right, score, rater, prompt)


def coverage(population: Population, studies: int = STUDIES, seed: int = 0) -> Coverage:
    """Fit so many simulated studies."""
    truth, contrasts = true_strengths(population.leanings), np.eye(len(THETA))
    held = {kind: np.zeros(len(THETA)) for kind in KINDS}
    together, seconds = 0, 0.0
    for study in range(studies):
        votes = simulate(population, np.random.default_rng((seed, study)))
        start = time.process_time()
        fitted = fit_strengths(votes)
        found = strength_intervals(fitted, contrasts, KINDS, seed)
        half = simultaneous_half(fitted, contrasts, "clustered", seed)
        seconds += time.process_time() - start
        for kind, each in found.items():
            held[kind] += (each.low <= truth) & (truth <= each.high)
        together += bool((np.abs(fitted.beta - truth) <= half).all())
    share = 100 / studies
    return Coverage(
        population, {kind: (share * each).tolist() for kind, each in held.items()}, share * together, seconds
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    for population in POPULATIONS:
        found = coverage(population, seed=options.seed)
        results.append(asdict(found))
        print(f"{population.name}: {population.raters} raters, {population.prompts} prompts, {found.cpu_seconds:.1f} s")
        for kind, each in found.held.items():
            print(f"  {kind:12} mean {np.mean(each):5.1f} of 100, least {min(each):.0f}")
        print(f"  all systems at once, clustered: {found.together:.0f} of 100")
    if options.out is not None:
        write_result(options.out, "vote coverage", circumstances(get_backend("cpu")), option="--out", results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
