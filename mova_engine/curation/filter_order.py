"""The order of filters in which clips are measured for the least seconds, from what a run measured and dropped.

A filter that costs c seconds a clip and drops a share p of the clips is worth c / p: with independent filters the sum
of all costs is least in ascending order of that (Smith's rule; for selections of databases Hellerstein and Stonebraker,
1993). Costs are of scores that no earlier filter has measured, and shares of clips that no earlier filter has dropped:
each filter is chosen after the last one (Munagala, Babu, Motwani and Widom, 2005).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mova_engine.curation.arrow_compute import compute
from mova_engine.curation.clip_file import unmeasured
from mova_engine.curation.clip_prints import is_late
from mova_engine.curation.filter_expression import FilterExpression
from mova_engine.curation.stage_seconds import StepSeconds
from mova_engine.curation.unit_steps import DECODE

if TYPE_CHECKING:
    import pyarrow as pa

# Fewer clips tell no share: then that of all clips which the filter could decide is taken.
_FEW = 30


@dataclass(frozen=True)
class PlacedFilter:
    """A filter in its place. seconds: of a clip that comes to it; drops: the share of them that it drops; comes: the
    share of all clips that come to it.
    """

    name: str
    seconds: float
    drops: float
    comes: float

    @property
    def rank(self) -> float:
        """Seconds for each clip that it drops."""
        return self.seconds / self.drops if self.drops else float("inf") if self.seconds else 0.0


@dataclass
class OrderCounter:
    """Gathers what filters decided of tables of clips, one after the other."""

    filters: Sequence[FilterExpression]

    def __post_init__(self) -> None:
        self._decided: list[list[np.ndarray]] = [[] for _ in self.filters]
        self._dropped: list[list[np.ndarray]] = [[] for _ in self.filters]
        self._measured: Counter[str] = Counter()
        self._late = [is_late(each) for each in self.filters]

    def add(self, table: "pa.Table") -> None:
        """table: the columns that the filters read, and "reasons", of all clips."""
        pc = compute()
        for i, each in enumerate(self.filters):
            found = each.of_table(table)
            self._decided[i].append(_bools(pc.is_valid(found)))
            self._dropped[i].append(_bools(pc.fill_null(pc.invert(found), False)))
        for score in {score for each in self.filters for score in each.scores}:
            self._measured[score] += table.num_rows - unmeasured(table, score)

    def order(self, seconds: Mapping[str, StepSeconds]) -> tuple[PlacedFilter, ...]:
        """The filters' order for these seconds of steps: the same for the same numbers. Filters that wait for all clips
        come last, as they spare nothing; of equal ones the first given comes first.
        """
        late = self._late
        return self._placed(seconds, lambda i, found, k: (late[i], found.rank, -found.drops, found.seconds, k))

    def as_given(self, seconds: Mapping[str, StepSeconds]) -> tuple[PlacedFilter, ...]:
        """The same of the order in which the filters were given."""
        return self._placed(seconds, lambda i, found, k: k)

    def _placed(
        self, seconds: Mapping[str, StepSeconds], key: Callable[[int, PlacedFilter, int], Any]
    ) -> tuple[PlacedFilter, ...]:
        """key: of a filter's number, of it in the next place, and of its place among those left: the least comes."""
        decided = [np.concatenate(parts) if parts else np.zeros(0, bool) for parts in self._decided]
        dropped = [np.concatenate(parts) if parts else np.zeros(0, bool) for parts in self._dropped]
        left = list(range(len(self.filters)))
        paid: set[str] = set()
        alive = np.ones(len(decided[0]) if decided else 0, bool)
        placed: list[PlacedFilter] = []
        while left:
            comes = float(alive.mean()) if alive.size else 0.0
            found = [
                PlacedFilter(
                    self.filters[i].name,
                    self._cost(self.filters[i], paid, seconds),
                    _share(decided[i], dropped[i], alive),
                    comes,
                )
                for i in left
            ]
            best = min(range(len(left)), key=lambda k: key(left[k], found[k], k))
            i = left.pop(best)
            placed.append(found[best])
            paid |= set(self.filters[i].scores)
            # While clips are measured nobody knows yet what drops them when all are together.
            alive &= ~dropped[i] | self._late[i]
        return tuple(placed)

    def _cost(self, filter_: FilterExpression, paid: set[str], seconds: Mapping[str, StepSeconds]) -> float:
        """Seconds of a clip that comes to the filter, after the scores in `paid`: each of its scores by the share of
        the filter's clips of which it was measured ("a or b" needs b only where a does not decide).
        """
        wanted = [score for score in filter_.scores if score not in paid]
        most = max((self._measured[score] for score in filter_.scores), default=0)
        cost = seconds[DECODE].per_clip if wanted and not paid and DECODE in seconds else 0.0
        for score in wanted:
            share = self._measured[score] / most if most else 1.0
            cost += share * (seconds[score].per_clip if score in seconds else 0.0)
        return cost


def _share(decided: np.ndarray, dropped: np.ndarray, alive: np.ndarray) -> float:
    """The share of clips that a filter drops, of those that come to it and that it can decide."""
    there = decided & alive
    if there.sum() < _FEW:
        there = decided
    return float(dropped[there].mean()) if there.any() else 0.0


def _bools(values: "pa.Array | pa.ChunkedArray") -> np.ndarray:
    import pyarrow as pa

    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return np.asarray(whole.to_numpy(zero_copy_only=False), bool)


def clip_seconds(placed: Sequence[PlacedFilter]) -> float:
    """Seconds that all filters' scores take of a clip, on average over all clips."""
    return sum(each.seconds * each.comes for each in placed)


def order_text(placed: Sequence[PlacedFilter]) -> str:
    """The order as a file that `mova curate --order` takes."""
    width = max((len(each.name) for each in placed), default=0)
    lines = ["# Filters in the order that measures the least: seconds of a clip, share of the clips that it drops."]
    lines += [f"{each.name:{width}}  # {each.seconds:.4f} s, {each.drops:.4f}" for each in placed]
    return "\n".join(lines) + "\n"
