"""How often systems won, with Wilson's interval."""

import math
from dataclasses import dataclass

from scipy.stats import norm

from mova_engine.evaluation.votes.cast_votes import CastVotes


@dataclass(frozen=True)
class WinRate:
    """Of `votes`: how many were won, tied and lost; rate: (wins + ties / 2) / votes, with its 95 % interval."""

    first: str
    second: str | None
    wins: int
    ties: int
    losses: int
    rate: float
    low: float
    high: float

    @property
    def votes(self) -> int:
        """How many there are."""
        return self.wins + self.ties + self.losses


def wilson(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share in `count` trials: it stays within 0 and 1 and is never empty.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile. count 0 gives 0 to 1.
    """
    if count == 0:
        return 0.0, 1.0
    z = float(norm.ppf((1 + confidence) / 2))
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    below = 1 + z * z / count
    # A share of 0 or 1 has that as its bound, which rounding would miss.
    low = 0.0 if share == 0 else (middle - half) / below
    high = 1.0 if share == 1 else (middle + half) / below
    return low, high


def win_rates(votes: CastVotes) -> list[WinRate]:
    """Of each system against all others, which `second` None stands for, then of each pair that has votes, once."""
    found, pairs = [], []
    for first, name in enumerate(votes.systems):
        for second in (None, *range(first + 1, len(votes.systems))):
            left = (votes.left == first) & (True if second is None else votes.right == second)
            right = (votes.right == first) & (True if second is None else votes.left == second)
            scores = [*votes.score[left].tolist(), *(1 - votes.score[right]).tolist()]
            if not scores and second is not None:
                continue
            wins, ties = scores.count(1.0), scores.count(0.5)
            rate = sum(scores) / len(scores) if scores else 0.5
            other = None if second is None else votes.systems[second]
            row = WinRate(name, other, wins, ties, len(scores) - wins - ties, rate, *wilson(rate, len(scores)))
            (found if second is None else pairs).append(row)
    return found + pairs
