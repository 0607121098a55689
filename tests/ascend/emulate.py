"""`python tests/ascend/emulate.py COMMAND ...`: run a program with an emulated Ascend; `python` means this Python.

    python tests/ascend/emulate.py python -m mova_engine.train --device npu --recipe nano

With --list before COMMAND it prints in the end which of torch_npu's own operators ran. It needs torch_npu beside torch,
and a C compiler; EMU_NPU_DEVICES says how many devices there are (default 1). tests/ascend/emulator/README.md says what
an emulated run shows, and what not.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

SITE = Path(__file__).resolve().parent / "emulator" / "site"


def environment() -> dict[str, str]:
    """The variables that make a Python process, and those it starts, use the emulator."""
    earlier = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SITE), *([earlier] if earlier else [])]),
        # torch must not import torch_npu by itself: the import has to pass through the emulator.
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        "TASK_QUEUE_ENABLE": "0",
    }


def list_executed(folder: Path) -> None:
    """Print how often each operator of torch_npu and MindIE-SD ran in all processes."""
    total: Counter[str] = Counter()
    for path in folder.glob("*.json"):
        total.update(json.loads(path.read_text(encoding="utf-8")))
    own = {name: count for name, count in total.items() if name.startswith(("npu::", "mindiesd::"))}
    print(f"executed by the emulator: {sum(total.values())} calls of {len(total)} operators, of Ascend's own:")
    for name, count in sorted(own.items()):
        print(f"  {name:40} {count}")


def main() -> int:
    """Run the command; return its exit status."""
    arguments = sys.argv[1:]
    listing = arguments[:1] == ["--list"]
    command = arguments[1:] if listing else arguments
    if not command:
        raise SystemExit(__doc__)
    if find_spec("torch_npu") is None:
        raise SystemExit("error: torch_npu is not installed; `make test-npu` sets up .venv-npu, which has it")
    if command[0] == "python":
        command[0] = sys.executable
    if shutil.which(command[0]) is None:
        raise SystemExit(f"error: no such program: {command[0]}")
    if not listing:
        os.execvpe(command[0], command, environment())
    with tempfile.TemporaryDirectory() as folder:
        # Messages of ranks that crash go with the folder.
        variables = {"EMU_HCCL_FOLDER": folder, **environment(), "EMU_NPU_EXECUTED": folder}
        status = subprocess.run(command, env=variables).returncode
        list_executed(Path(folder))
    return status


if __name__ == "__main__":
    sys.exit(main())
