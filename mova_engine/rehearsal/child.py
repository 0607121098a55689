"""Runs a dry run in a child process, so that its patches of torch do not affect the caller. Imports no torch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mova_engine.errors import MovaError

# Begins the line of the child's output that holds the result; libraries may print other lines before it.
_MARK = "rehearsal: "


def in_child(target: str, device: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Call `target`, "module:function", with the plain values of `job` in a new process on a fake `device`; returns
    the plain values that it returns.

    Raises MovaError with the child's error message if it fails.
    """
    command = [sys.executable, "-m", "mova_engine.rehearsal", target, device]
    done = subprocess.run(command, input=json.dumps(dict(job)), capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if errors:
        raise MovaError(errors[-1].removeprefix("error: "))
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise MovaError(f"the rehearsal ended with status {done.returncode}: {last}")


def told(result: Mapping[str, Any]) -> str:
    """The line of output in which the child returns its result."""
    return _MARK + json.dumps(dict(result))
