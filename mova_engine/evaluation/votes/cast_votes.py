"""Votes as arrays: which two systems, which of them won, and by whom and on which prompt it was said."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class CastVotes:
    """n votes between k systems, all arrays of length n.

    left, right: indices into `systems`. score: 1 where the left clip won, 0 where the right one did, 0.5 for a tie
    (both bad is one). rater, prompt: numbers that tell them apart. covariates: [n, c], of which `effects` gives the
    names; each is signed so that a larger value speaks for the left clip if its effect is positive.
    """

    systems: tuple[str, ...]
    left: Whole
    right: Whole
    score: Floats
    rater: Whole
    prompt: Whole
    covariates: Floats
    effects: tuple[str, ...] = ()

    @classmethod
    def plain(
        cls,
        systems: Sequence[str],
        left: Sequence[int] | Whole,
        right: Sequence[int] | Whole,
        score: Sequence[float] | Floats,
        rater: Sequence[int] | Whole | None = None,
        prompt: Sequence[int] | Whole | None = None,
    ) -> "CastVotes":
        """Votes without covariates; without raters or prompts each vote is of one rater, or on one prompt."""
        count = len(left)
        return cls(
            tuple(systems),
            np.asarray(left, np.int64),
            np.asarray(right, np.int64),
            np.asarray(score, np.float64),
            np.zeros(count, np.int64) if rater is None else np.asarray(rater, np.int64),
            np.zeros(count, np.int64) if prompt is None else np.asarray(prompt, np.int64),
            np.zeros((count, 0)),
        )

    def __len__(self) -> int:
        return len(self.left)

    def where(self, chosen: NDArray[np.bool_]) -> "CastVotes":
        """The votes that are chosen, of the same systems."""
        return replace(
            self,
            left=self.left[chosen],
            right=self.right[chosen],
            score=self.score[chosen],
            rater=self.rater[chosen],
            prompt=self.prompt[chosen],
            covariates=self.covariates[chosen],
        )

    def among(self, names: Sequence[str]) -> "CastVotes":
        """The votes between these systems alone, which are numbered anew."""
        place = np.full(len(self.systems), -1)
        place[[self.systems.index(name) for name in names]] = np.arange(len(names))
        kept = self.where((place[self.left] >= 0) & (place[self.right] >= 0))
        return replace(kept, systems=tuple(names), left=place[kept.left], right=place[kept.right])

    def wins(self) -> Floats:
        """[k, k]: how often the row's system beat the column's, a tie as half a win for each."""
        table = np.zeros((len(self.systems), len(self.systems)))
        np.add.at(table, (self.left, self.right), self.score)
        np.add.at(table, (self.right, self.left), 1 - self.score)
        return table

    def design(self) -> Floats:
        """[n, k + c]: 1 at the left clip's system, -1 at the right one's, then the covariates."""
        rows, count = np.arange(len(self)), len(self.systems)
        matrix = np.zeros((len(self), count + self.covariates.shape[1]))
        matrix[rows, self.left] = 1
        matrix[rows, self.right] -= 1
        matrix[:, count:] = self.covariates
        return matrix
