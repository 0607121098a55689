"""`python -m mova_engine.rehearsal MODULE:FUNCTION DEVICE < JOB`: the child of `child.in_child`.

Every failure is reported as one line: errors that the run itself would raise, and errors of torch about fake tensors
(device, dtype or shape mismatch), together with the engine's file and function in which they were raised.
"""

import importlib
import json
import sys
import traceback
from pathlib import Path

from mova_engine.errors import MovaError, run_cli
from mova_engine.rehearsal.child import told
from mova_engine.rehearsal.fake_devices import prepare_device

_ENGINE = Path(__file__).parents[1]


def run_child() -> int:
    """Prepare the device, call the function with the values on standard input, print what it returns."""
    target, device = sys.argv[1:]
    prepare_device(device)
    module, _, function = target.partition(":")
    job = json.load(sys.stdin)
    try:
        result = getattr(importlib.import_module(module), function)(**job)
    except MovaError:
        raise
    except Exception as error:  # torch raises a dozen different types
        raise MovaError(_in_a_line(error)) from error
    print(told(result))
    return 0


def _in_a_line(error: BaseException) -> str:
    """The error's text, and the innermost frame of the traceback that is in the engine but not in `rehearsal`."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    inside = [(path.relative_to(_ENGINE), name) for path, name in frames if _ENGINE in path.parents]
    own = [(path, name) for path, name in inside if path.parts[0] != "rehearsal"]
    where = f" in {own[-1][0].as_posix()}, {own[-1][1]}" if own else ""
    said = " ".join(str(error).split()) or type(error).__name__
    return f"the rehearsed step fails{where}: {said[:400]}"


if __name__ == "__main__":
    run_cli(run_child)
