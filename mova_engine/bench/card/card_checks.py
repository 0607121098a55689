"""Whether the card computes the right numbers: the doctor's findings, every operator, the reference model's cases."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mova_engine.bench.card.card_context import CardContext, LeftOut, first_line
from mova_engine.doctor.checks import CHECKS
from mova_engine.doctor.examination import Examination, examine
from mova_engine.ops import DTYPES, OPERATORS, Operator, bind, bind_operator, refusal
from mova_engine.ops.declarations import Implementation
from mova_engine.ops.testing.cases import Case, cases_of
from mova_engine.ops.testing.verify import Deviation, verify
from mova_engine.parity.builtin import tower_rows
from mova_engine.parity.case import CaseDevice
from mova_engine.parity.judge import ParityRow
from mova_engine.parity.runner import run_folder

_GOLDEN = Path(__file__).resolve().parents[3] / "tests" / "data" / "golden"
_RECORDED, _TOWERS, _COMPILED = "recorded cases", "towers ", "compile"
Rows = list[dict[str, Any]]


def examine_card(context: CardContext, unit: str) -> Rows:
    """One row for each finding of the doctor, its self test left out: what comes after judges more."""
    report = examine(Examination(context.backend), CHECKS)
    return [{"check": name, **asdict(finding)} for name, finding in report.findings]


def judge_operator(context: CardContext, unit: str) -> Rows:
    """A row for each implementation of the operator `unit` and each dtype: how many tensors of how many cases were
    compared with float64, values and gradients, and the worst as a share of what is allowed.

    A rehearsal takes the first case. An implementation that cannot run here has a row with the reason.
    """
    operator = OPERATORS[unit]
    cases = [case for case in cases_of(operator) if case.size == "test"]
    found: Rows = []
    for entry in operator.implementations:
        # It would be compiled for each shape, for minutes.
        if entry.name == _COMPILED:
            continue
        # No model is trained in float16.
        for name in (dtype for dtype in entry.dtypes if dtype in DTYPES):
            reason = refusal(operator, entry, context.backend, entry.differentiable, (DTYPES[name],))
            row = {"operator": unit, "implementation": entry.name, "dtype": name}
            if reason:
                found.append(row | {"refused": reason})
                break
            chosen = cases[:1] if context.rehearsed else cases
            try:
                found.append(row | _judged(operator, entry, chosen, context, DTYPES[name]))
            except Exception as error:  # what a kernel or its compiler raises: the others are judged all the same
                found.append(row | {"passed": False, "failed": first_line(error)})
    if not found:
        raise LeftOut("there is nothing but the reference")
    return found


def _judged(
    operator: Operator, entry: Implementation, cases: list[Case], context: CardContext, dtype: torch.dtype
) -> dict[str, Any]:
    function, _ = bind_operator(operator, context.backend, entry.name, False, (dtype,))
    findings: list[tuple[str, Deviation]] = []
    for case in cases:
        made = verify(operator, function, case, context.device, dtype, entry.differentiable)
        findings += [(case.name, finding) for finding in made]
    missed = [f"{case}, {finding}" for case, finding in findings if not finding.passed]
    worst = max(findings, key=lambda pair: pair[1].share)
    return {
        "cases": len(cases),
        "compared": len(findings),
        "worst_share": worst[1].share,
        "worst": f"{worst[0]}, {worst[1].tensor}",
        "passed": not missed,
        "missed": missed[:5],
    }


def reproduce(context: CardContext, unit: str) -> Rows:
    """A row that says how many tensors were compared and which were missed: recorded cases of the reference model in
    float32, or forward and backward of both towers by the chosen operators, in the dtype that `unit` names.
    """
    table = bind(context.backend)
    if unit == _RECORDED:
        if not _GOLDEN.is_dir():
            raise LeftOut("the recorded cases come with a checkout, and this is none")
        machine = CaseDevice(table, context.device)
        rows = [row for _, found in run_folder(_GOLDEN, machine) for row in found]
    else:
        rows = tower_rows(context.backend, table, DTYPES[unit.removeprefix(_TOWERS)])
    missed = [row for row in rows if not row.passed]
    return [
        {
            "case": unit,
            "compared": len(rows),
            "worst_share": max(_shares(rows), default=0.0),
            "passed": not missed,
            "missed": [asdict(row) for row in missed[:10]],
        }
    ]


def _shares(rows: list[ParityRow]) -> Iterator[float]:
    return (row.difference / row.bound for row in rows if row.difference is not None and row.bound)
