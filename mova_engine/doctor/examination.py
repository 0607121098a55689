"""The examination: checks in order, each guarded, so that a report comes out whatever is broken."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mova_engine.backend import NAMES, Backend, describe_backend
from mova_engine.backend.health import NOTE, PROBLEM, Finding, Surroundings
from mova_engine.errors import MovaError


@dataclass(frozen=True)
class Examination:
    """What is examined. golden: a folder of recorded cases to reproduce, None for none."""

    backend: Backend
    around: Surroundings = field(default_factory=Surroundings)
    golden: Path | None = None


@dataclass(frozen=True)
class Check:
    """One check. gate: a problem that it finds makes those that load the device's libraries (loads) pointless."""

    name: str
    run: Callable[[Examination], list[Finding]]
    gate: bool = False
    loads: bool = False


@dataclass(frozen=True)
class Report:
    """Findings by check, in order."""

    device: str
    findings: tuple[tuple[str, Finding], ...]

    @property
    def usable(self) -> bool:
        """Whether training on the device would start and compute the right numbers, as far as was examined."""
        return not self.count(PROBLEM)

    def count(self, level: str) -> int:
        """Findings of a level."""
        return sum(finding.level == level for _, finding in self.findings)


def choose_device(around: Surroundings) -> Backend:
    """The best device that this machine is meant to serve, whether it can or not: a fault of it is what is looked for.

    Nothing is loaded to find out.
    """
    return next(backend for name in reversed(NAMES) if (backend := describe_backend(name)).present(around))


class Listener:
    """Is told how an examination goes on. These do nothing."""

    def begins(self, check: Check) -> None:
        """`check` is about to run."""

    def found(self, name: str, finding: Finding) -> None:
        """The check called `name` has found something."""


def examine(
    examination: Examination, checks: Sequence[Check], trace: bool = False, listener: Listener | None = None
) -> Report:
    """Run the checks; trace: print the stack of one that fails unexpectedly; listener: learns of findings at once."""
    listener = listener or Listener()
    found: list[tuple[str, Finding]] = []
    skipped: list[str] = []
    shut = False

    def add(name: str, finding: Finding) -> None:
        found.append((name, finding))
        listener.found(name, finding)

    for check in checks:
        if check.loads and shut:
            skipped.append(check.name)
            continue
        listener.begins(check)
        findings = _guarded(check, examination, trace)
        shut |= check.gate and any(finding.level == PROBLEM for finding in findings)
        for finding in findings:
            add(check.name, finding)
    if skipped:
        what = f"not examined for the problems above: {', '.join(skipped)}"
        add("left out", Finding(NOTE, what, "solve them and run the doctor again"))
    return Report(examination.backend.name, tuple(found))


def _guarded(check: Check, examination: Examination, trace: bool) -> list[Finding]:
    try:
        return check.run(examination)
    except MovaError as error:
        return [Finding(PROBLEM, str(error))]
    except Exception as error:  # a broken machine fails in ways that nobody listed
        if trace:
            traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        what = f"{type(error).__name__}: {lines[0]}"
        return [Finding(PROBLEM, what, "--trace tells where; if the remedy is not plain, report it with this output")]
