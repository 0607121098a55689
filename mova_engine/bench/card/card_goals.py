"""What is wanted of one H100 80 GB or H200, and whether rows reach it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

# Suites that the goals are of.
GOAL_SUITES = ("h100", "h200")
_CASE = "360p"
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Goal:
    """value: from the rows of all parts; None: not measured. It is to be at least or at most `bound`."""

    about: str
    bound: float
    value: Callable[[Rows], float | None]
    at_least: bool
    unit: str

    def text(self, value: float) -> str:
        """A value of its kind."""
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f} {self.unit}"

    def reached(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def _slowest_operator(figure: str) -> Callable[[Rows], float | None]:
    """The least figure over the operators on rows, of each its best implementation, at 360p."""

    def value(rows: Rows) -> float | None:
        best: dict[str, float] = {}
        for row in rows.get("operators", []):
            if row.get(figure) is not None and row["case"] == _CASE:
                best[row["operator"]] = max(best.get(row["operator"], 0.0), row[figure])
        return min(best.values(), default=None)

    return value


def _figure(part: str, figure: str) -> Callable[[Rows], float | None]:
    """A figure of a part's first row, if it was measured at the size that the goal is for."""

    def value(rows: Rows) -> float | None:
        whole: Iterable[dict[str, Any]] = (row for row in rows.get(part, []) if "scaled" not in row)
        return next((row[figure] for row in whole if row.get(figure) is not None), None)

    return value


GOALS = (
    Goal(
        "fused operators, forward: of the copy bandwidth, the least",
        0.90,
        _slowest_operator("forward_of_copy_bandwidth"),
        True,
        "%",
    ),
    Goal(
        "fused operators, backward: of the copy bandwidth, the least",
        0.85,
        _slowest_operator("backward_of_copy_bandwidth"),
        True,
        "%",
    ),
    Goal("40 video blocks, selective checkpointing: MFU", 0.48, _figure("stack", "mfu"), True, "%"),
    Goal("40 video blocks, selective checkpointing: HFU", 0.59, _figure("stack", "hfu"), True, "%"),
    Goal("denoising step of two evaluations, 360p, bf16", 8.5, _figure("denoise", "median_s"), False, "s"),
    Goal("LoRA step, 360p, cached latents", 16.0, _figure("lora", "median_s"), False, "s"),
)
