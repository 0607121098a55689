"""The two steps around the import of torch_npu: libraries before it, kernels after it."""

import atexit
import ctypes
import json
import os
from pathlib import Path

from ascend.emulator.build import built

# Not the name of a real part: nothing may take a figure from here for a measurement.
DEVICE_NAME = "emulated Ascend 910B2"


def load_libraries() -> None:
    """Load the software CANN under the names that torch_npu's own libraries depend on."""
    # With its queue of tasks torch_npu orders work by streams, which do nothing here: HCCL would race.
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    for path in built():
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def install_kernels() -> None:
    """Let every operator that torch_npu registered compute on the CPU; say in the device's name what it is."""
    import torch

    from ascend.emulator import install, legacy

    install.install()
    legacy.install(str(built()[0]))
    torch.npu.get_device_name = lambda device=None: DEVICE_NAME
    atexit.register(leave_counts)


def install_mindie_kernels() -> None:
    """The same for MindIE-SD, after its import."""
    from ascend.emulator import install

    install.install_mindie()


def leave_counts() -> None:
    """Write this process's counts of operators into the folder that EMU_NPU_EXECUTED names, where it does."""
    from ascend.emulator.kernel import executed

    folder = os.environ.get("EMU_NPU_EXECUTED")
    if folder and executed:
        (Path(folder) / f"{os.getpid()}.json").write_text(json.dumps(executed), encoding="utf-8")
