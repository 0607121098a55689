"""Programs in several processes, each with an NPU of its own, real or emulated."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed.world import free_port

ROOT = Path(__file__).resolve().parents[2]


def launch(ranks: int, folder: Path, *program: object) -> None:
    """Run a program, or "-m" and a module, in so many processes; what crashed ranks leave goes with the folder."""
    emulated = "ascend.emulator.kernel" in sys.modules
    if not emulated and torch.npu.device_count() < ranks:
        pytest.skip(f"needs {ranks} NPUs, this machine has {torch.npu.device_count()}")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", ranks, "--master-port", free_port())
    command = [sys.executable, *map(str, launcher if ranks > 1 else ()), *map(str, program)]
    # Programs of the tests find their helpers as the tests do.
    earlier = os.environ.get("PYTHONPATH", "")
    found = os.pathsep.join(path for path in (earlier, str(ROOT / "tests")) if path)
    variables = {
        "PYTHONPATH": found,
        "EMU_NPU_DEVICES": str(ranks),
        "EMU_HCCL_FOLDER": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    child = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=240)
    assert child.returncode == 0, child.stderr[-4000:]
    assert not list(folder.glob("emuhccl.*")), "messages were left behind"
