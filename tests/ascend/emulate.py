"""`python tests/ascend/emulate.py COMMAND ...`: run a program with an emulated Ascend; `python` means this Python.

    python tests/ascend/emulate.py python -m mova_engine.train --device npu --recipe nano

Needs torch_npu beside torch, and a C compiler. EMU_NPU_DEVICES says how many devices there are (default 1). What an
emulated run shows, and what not, is in tests/ascend/emulator/README.md.
"""

import os
import shutil
import sys
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


def main() -> None:
    """Become the command."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    if find_spec("torch_npu") is None:
        raise SystemExit("error: torch_npu is not installed; `make test-npu` sets up .venv-npu, which has it")
    command = [sys.executable if sys.argv[1] == "python" else sys.argv[1], *sys.argv[2:]]
    if shutil.which(command[0]) is None:
        raise SystemExit(f"error: no such program: {command[0]}")
    os.execvpe(command[0], command, environment())


if __name__ == "__main__":
    main()
