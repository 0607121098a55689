"""What an evaluation found: a row for each clip, what the set says of each number, and what it took."""

from dataclasses import dataclass
from typing import Any

from mova_engine.evaluation.benches.bench_run import BenchResult
from mova_engine.evaluation.column_summary import ColumnSummary
from mova_engine.evaluation.set_summary import SetResult

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreSeconds:
    """Seconds that a score, or "decode", took of the clips in which it was measured, in all and in the mean."""

    clips: int
    total: float

    @property
    def mean(self) -> float:
        return self.total / self.clips if self.clips else 0.0


@dataclass(frozen=True)
class EvaluationResult:
    """rows: one for each clip, with "clip", "sha256", every column and, as "why_SCORE", what kept it from a number.

    sets: numbers of the whole set. seconds: by score, and of "decode". facts: {score: its version, convention and
    weights}. skipped: {score: why it was not measured}. bench: where the clips are those of one; sets is then empty.
    """

    rows: list[Row]
    summaries: list[ColumnSummary]
    sets: list[SetResult]
    seconds: dict[str, ScoreSeconds]
    facts: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    bench: BenchResult | None = None
