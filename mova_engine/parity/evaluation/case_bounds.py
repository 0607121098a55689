"""What a run of an evaluation case produced, and the verdict on each recorded tensor and value."""

import dataclasses
import fnmatch
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mova_engine.parity.case import GoldenCase
from mova_engine.parity.judge import ParityRow

# Where the values of a case's JSON appear among the names that bounds are given for.
VALUES = "values."


@dataclass(frozen=True)
class Bound:
    """How far from the recorded number ours may be.

    of: "maximum" divides the largest difference by the largest recorded magnitude, "absolute" leaves it, "relative"
    divides each difference by its own recorded number. Words and truth values must be equal under each. rows: only so
    many first rows are compared, where a choice between nearly equal numbers moves all later ones. below: (level,
    factor): where the recorded number is below the level, the limit is so many times larger, as for quiet bands in dB.
    """

    limit: float
    of: Literal["maximum", "absolute", "relative"] = "maximum"
    rows: int | None = None
    below: tuple[float, float] | None = None

    def difference(self, ours: Tensor, recorded: Tensor) -> float:
        """The difference in this bound's units; infinite for another shape and where one alone is not finite."""
        if ours.shape != recorded.shape:
            return math.inf
        ours, recorded = ours[: self.rows] if self.rows else ours, recorded[: self.rows] if self.rows else recorded
        a, b = ours.detach().to("cpu", torch.float64), recorded.to(torch.float64)
        off = torch.where(a == b, torch.zeros_like(b), (a - b).abs())  # equal infinities differ by nothing
        off = torch.where(a.isnan() & b.isnan(), torch.zeros_like(b), off)
        if off.numel() == 0:
            return 0.0
        if self.below is not None:
            level, factor = self.below
            off = torch.where(b < level, off / factor, off)
        if self.of == "absolute":
            worst = float(off.max())
        elif self.of == "relative":
            worst = float((off / b.abs().clamp_min(torch.finfo(torch.float32).tiny)).max())
        else:
            largest = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
            worst = float(off.max()) / largest if largest > 0 else float(off.max())
        return math.inf if math.isnan(worst) else worst


EXACT = Bound(0.0, "absolute")


@dataclass(frozen=True)
class EvaluationOutcome:
    """tensors: by the recorded names. values: nested as the case's `values`; leaves are numbers, words, lists.

    absent: {pattern: why} of what could not be produced here, such as results of a file that is not at hand.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


def judge_evaluation(
    case: GoldenCase,
    recorded: Mapping[str, Tensor],
    outcome: EvaluationOutcome,
    bounds: Mapping[str, Bound],
    unjudged: Mapping[str, str],
) -> list[ParityRow]:
    """One row for every recorded tensor that is not an input, and one for every recorded value.

    bounds: {pattern of names: bound}; the first that matches counts, and a name that none matches must be exact. Values
    have the names "values.a.b". unjudged: {pattern: why it is no result of ours}; such names get no row.
    """
    rows = []
    for name, tensor in recorded.items():
        if name.startswith("in.") or _matches(name, unjudged):
            continue
        rows.append(_row(case.name, name, outcome.tensors.get(name), tensor, _bound_of(name, bounds)))
    produced = dict(_leaves(outcome.values))
    for path, value in _leaves(case.meta.get("values", {})):
        name = VALUES + path
        if not _matches(name, unjudged):
            rows.append(_row(case.name, name, produced.get(path), value, _bound_of(name, bounds)))
    return [_explained(row, outcome.absent) for row in rows]


def _explained(row: ParityRow, absent: Mapping[str, str]) -> ParityRow:
    reason = next((why for pattern, why in absent.items() if fnmatch.fnmatchcase(row.tensor, pattern)), "")
    return dataclasses.replace(row, note=reason) if row.difference is None and reason else row


def _row(case: str, name: str, ours: Any, recorded: Any, bound: Bound) -> ParityRow:
    if ours is None and recorded is not None:
        return ParityRow(case, name, None, bound.limit, "no runner produces this")
    known, found = _numbers(recorded), _numbers(ours)
    if known is None or found is None:
        equal = ours == recorded
        return ParityRow(case, name, 0.0 if equal else math.inf, 0.0, "" if equal else f"{ours!r} is not {recorded!r}")
    note = "" if found.shape == known.shape else f"shape {list(found.shape)}, recorded {list(known.shape)}"
    return ParityRow(case, name, bound.difference(found, known), bound.limit, note)


def _numbers(value: Any) -> Tensor | None:
    """A tensor, number or even list of numbers as a tensor; None for what is compared as it is."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (bool, str)) or value is None:
        return None
    try:
        return torch.tensor(value, dtype=torch.float64 if _has_float(value) else torch.int64)
    except (TypeError, ValueError, RuntimeError):
        return None


def _has_float(value: Any) -> bool:
    return any(map(_has_float, value)) if isinstance(value, (list, tuple)) else isinstance(value, float)


def _bound_of(name: str, bounds: Mapping[str, Bound]) -> Bound:
    return next((bound for pattern, bound in bounds.items() if fnmatch.fnmatchcase(name, pattern)), EXACT)


def _matches(name: str, patterns: Mapping[str, str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is no object within nested objects, with its path; lists of objects by index."""
    if isinstance(values, Mapping):
        items: Any = values.items()
    elif isinstance(values, list) and any(isinstance(item, (Mapping, list)) for item in values) and _uneven(values):
        items = enumerate(values)
    else:
        yield path, values
        return
    for name, value in items:
        yield from _leaves(value, f"{path}.{name}" if path else str(name))


def _uneven(values: list[Any]) -> bool:
    """Whether a list is no even table of numbers."""
    return _numbers(values) is None
