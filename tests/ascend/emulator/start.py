"""The two steps around the import of torch_npu: libraries before it, kernels after it."""

import ctypes
import os

from ascend.emulator.build import built


def load_libraries() -> None:
    """Load the software CANN under the names that torch_npu's own libraries depend on."""
    # With its queue of tasks torch_npu orders work by streams, which do nothing here: HCCL would race.
    os.environ["TASK_QUEUE_ENABLE"] = "0"
    for path in built():
        ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def install_kernels() -> None:
    """Let every operator that torch_npu registered compute on the CPU."""
    from ascend.emulator import install, legacy

    install.install()
    legacy.install(str(built()[0]))
