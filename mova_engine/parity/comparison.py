"""A folder of recorded cases run on this machine, and the verdict printed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from mova_engine.backend import Backend, PrecisionReport, get_backend
from mova_engine.errors import MovaError
from mova_engine.ops import DTYPES, REFERENCE, bind
from mova_engine.parity.case import CaseDevice
from mova_engine.parity.judge import ParityRow
from mova_engine.parity.runner import run_folder


def compare_folder(
    folder: Path,
    device: str = "cpu",
    dtype: str = "float32",
    ops: tuple[str, ...] = (),
    *,
    quiet: bool = False,
    keep_reduced_precision: bool = False,
) -> int:
    """Run every case of a folder and print a row per tensor; returns 1 on any miss, else 0.

    ops: choices "OPERATOR=IMPLEMENTATION", or "reference" for all. quiet: each case's worst tensor and every miss only.
    keep_reduced_precision: leave TF32/HF32 as they are; a miss where one is on.
    """
    backend = get_backend(device)
    table = bind(backend, _choices(ops))
    print(f"device {backend.name}: {backend.describe()}; torch {torch.__version__}; {dtype}")
    print("operators: " + ", ".join(c.label for c in table.choices))
    machine = CaseDevice(table, backend.device(), DTYPES[dtype])
    with _precision(backend, keep_reduced_precision) as still_on:
        missed = _run(folder, machine, quiet)
    if still_on:
        print(f"MISS: reduced precision was on for float32: {'; '.join(r.switch for r in still_on)}")
    print(f"parity: {'FAILED' if missed or still_on else 'passed'}")
    return 1 if missed or still_on else 0


def _choices(words: tuple[str, ...]) -> dict[str, str] | str | None:
    if words == (REFERENCE,):
        return REFERENCE
    for word in words:
        if "=" not in word:
            raise MovaError(f"--ops takes OP=IMPL or the one word '{REFERENCE}', got '{word}'")
    return dict(word.split("=", 1) for word in words) or None


@contextlib.contextmanager
def _precision(backend: Backend, keep: bool) -> Iterator[list[PrecisionReport]]:
    """Full float32 within the block; yields the shortcuts that stay on."""
    if keep:
        yield [r for r in backend.precision_report() if r.was_on]
        return
    with backend.full_precision() as found:
        print(f"switched off for this run, restored after: {_names(found)}")
        yield []


def _names(found: list[PrecisionReport]) -> str:
    return (
        "; ".join(f"{r.switch} (was {'on' if r.was_on else 'off'})" for r in found)
        or "nothing (this device has no switch)"
    )


def _run(folder: Path, machine: CaseDevice, quiet: bool) -> int:
    print(f"{'case':28} {'tensor':76} {'max rel':>9} {'bound':>7}  verdict")
    missed = compared = 0
    for _, rows in run_folder(folder, machine):
        missed += sum(not row.passed for row in rows)
        compared += len(rows)
        shown = sorted(rows, key=_badness)[-1:] if quiet else rows
        for row in shown + [r for r in rows if not r.passed and r not in shown]:
            print(_line(row))
    print(f"{compared} tensors compared, {missed} missed")
    return missed


def _badness(row: ParityRow) -> float:
    return float("inf") if row.difference is None else row.difference / max(row.bound, 1e-30)


def _line(row: ParityRow) -> str:
    worst = "-" if row.difference is None else f"{row.difference:.1e}"
    note = f"  {row.note}" if row.note else ""
    return f"{row.case:28} {row.tensor:76} {worst:>9} {row.bound:7.0e}  {'ok' if row.passed else 'MISS'}{note}"
