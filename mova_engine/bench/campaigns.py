"""`--suite NAME`: a list of measurements, run one after another into one result file to send back.

First the device must compute the right numbers: recorded cases of the reference model where they are at hand, else the
chosen operators and both towers against the references. Then each measurement runs on its own: one that fails or does
not fit is written down with its reason, and the rest goes on. The file is written anew after each, so that a run that
is cut short leaves what it has.
"""

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mova_engine.backend import NAMES, Backend, default_backend, get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.bench.settings import MEASUREMENTS, SuiteConfig
from mova_engine.bench.suites import SUITES
from mova_engine.bench.timing import EMULATED
from mova_engine.errors import MovaError, redact, suggest
from mova_engine.files.results import check_result, write_result
from mova_engine.ops import DTYPES, OPERATORS, bind
from mova_engine.ops.testing.cases import cases_of
from mova_engine.parity.builtin import operator_rows, tower_rows
from mova_engine.parity.case import CaseDevice
from mova_engine.parity.judge import ParityRow
from mova_engine.parity.runner import run_folder

_GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "data" / "golden"


@dataclass(frozen=True)
class Measurement:
    """A measurement of a campaign: a subcommand and its options. full: for MOVA's shapes on a real device. small: for
    small shapes on a CPU or an emulated device.

    rehearsed: False: it has no small shapes, and is skipped on a CPU or an emulated device, which would take days.
    """

    command: str
    full: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    dtype: str = "bfloat16"
    rehearsed: bool = True


# As few runs as there may be: a rehearsal's times say nothing.
_BRIEF = ("--pairs", "1", "--one-process")
_SMALL = ("--model", "nano", *_BRIEF)
_360P = ("--model", "mova-360p")

CAMPAIGNS: dict[str, tuple[Measurement, ...]] = {
    # A single card of 64 GB at 360p: the parts of a step, the step, then each operator by itself, since one whose
    # check does not fit must not take the others with it.
    "910a2": (
        Measurement("chain", (), ("--rows", "256", "--width", "128", *_BRIEF)),
        Measurement("block", _360P, _SMALL),
        Measurement("audio-block", _360P, _SMALL),
        Measurement("bridge", _360P, _SMALL),
        Measurement("denoise", _360P, _SMALL),
        Measurement("stack", _360P, _SMALL),
        Measurement("step", (*_360P, "--memory.checkpointing", "full"), _SMALL),
        *(
            Measurement("operators", ("--op", name, "--seconds", "1"), rehearsed=False)
            for name, operator in OPERATORS.items()
            if any(case.size == "bench" for case in cases_of(operator))
        ),
    ),
}


def run_suite(settings: SuiteConfig) -> int:
    """Run the campaign that `settings` name. Returns 1 if parity fails (nothing is measured then), else 0."""
    if settings.suite not in CAMPAIGNS:
        known = f"Known: {', '.join(CAMPAIGNS)}"
        raise MovaError(f"unknown suite '{settings.suite}'.{suggest(settings.suite, CAMPAIGNS)} {known}")
    measurements = CAMPAIGNS[settings.suite]
    unknown = [m.command for m in measurements if m.command not in SUITES]
    if unknown:
        raise MovaError(f"suite {settings.suite} needs '{unknown[0]}', which this version of the engine lacks")
    backend = get_backend(settings.device) if settings.device else default_backend()
    path = settings.json or Path(f"{settings.suite}-{backend.name}.json")
    check_result(path)
    content: dict[str, Any] = {"load_at_start": os.getloadavg()[0], "emulated": backend.emulated(), "measurements": []}
    if backend.emulated():
        content["mark"] = EMULATED
        print(EMULATED)
    golden = settings.golden or (_GOLDEN if _GOLDEN.is_dir() else None)
    content["parity"], passed = _parity(backend, golden)
    small = settings.small or backend.emulated() or backend.name == NAMES[0]
    for measurement in measurements if passed else ():
        content["measurements"].append(_measure(measurement, backend, small))
        write_result(path, f"suite {settings.suite}", circumstances(backend), **content)
    write_result(path, f"suite {settings.suite}", circumstances(backend), **content)
    failed = [f"{m['command']} ({m['dtype']})" for m in content["measurements"] if "failed" in m]
    print(
        f"written to {path}; please send it back" + (f"; failed, and said why: {', '.join(failed)}" if failed else "")
    )
    return 0 if passed else 1


def _parity(backend: Backend, golden: Path | None) -> tuple[dict[str, Any], bool]:
    """The parity check, with reduced-precision modes of float32 switched off: its result and its worst rows."""
    rows: dict[str, list[ParityRow]] = {}
    with backend.full_precision():
        table = bind(backend)
        if golden is not None:
            machine = CaseDevice(table, backend.device())
            rows["recorded cases, float32"] = [row for _, found in run_folder(golden, machine) for row in found]
        for name, dtype in DTYPES.items():
            rows[f"operators, {name}"] = list(operator_rows(backend, dtype))
            rows[f"towers, {name}"] = tower_rows(backend, table, dtype)
    verdict = {}
    for name, found in rows.items():
        missed = [asdict(row) for row in found if not row.passed]
        verdict[name] = {"compared": len(found), "missed": missed}
        print(f"parity, {name}: {len(found)} compared, {len(missed)} missed")
        for row in missed:
            print(f"  MISS {row['case']} {row['tensor']}: {row['difference']} of {row['bound']} {row['note']}")
    return verdict, not any(part["missed"] for part in verdict.values())


def _measure(measurement: Measurement, backend: Backend, small: bool) -> dict[str, Any]:
    """One entry of the result file: rows, or the reason why there are none."""
    options = measurement.small if small else measurement.full
    entry = {"command": measurement.command, "dtype": measurement.dtype, "small": small}
    if small and not measurement.rehearsed:
        return entry | {"left_out": f"no small shapes: {' '.join(measurement.full)}"}
    command = MEASUREMENTS[measurement.command]
    print(f"== {measurement.command} {measurement.dtype} {' '.join(options)}")
    start = time.monotonic()
    try:
        with backend.full_precision():
            rows = SUITES[measurement.command](command.parse(options), backend, DTYPES[measurement.dtype])
    except Exception as error:  # of a device that nobody here has: all its failures are worth knowing
        lines = str(error).strip().splitlines() or [""]
        entry["failed"] = redact(f"{type(error).__name__}: {lines[0]}")
        print(f"failed: {entry['failed']}")
    else:
        entry["rows"] = [row | {"mark": EMULATED} for row in rows] if backend.emulated() else rows
    return entry | {"options": list(options), "seconds": round(time.monotonic() - start, 1)}
