"""A rehearsal runs in a process of its own: what it changes in torch never touches the caller. Imports no torch."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mova_engine.errors import MovaError

# Ends a report in the child's output; what libraries print comes before it.
_MARK = "rehearsal: "


def in_child(target: str, device: str, job: Mapping[str, Any]) -> dict[str, Any]:
    """Call `target`, "module:function", with the plain values of `job` in a new process on a fake `device`; returns
    the plain values that it returns.

    Raises MovaError with the child's own line where it refuses, and where it fails.
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
    """The line by which a child hands its result over."""
    return _MARK + json.dumps(dict(result))
