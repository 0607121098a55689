"""Stand-ins for devices that this machine does not have, for fake tensors. All functions patch torch in this process.

Autograd, FSDP2 and checkpointing use a device's streams, events and current index even if no tensor has data. The
stand-in for an NPU is torch's Python backend (`PrivateUse1`, renamed to npu). The one for CUDA is a small library
(`csrc/fake_cuda`) that registers a device guard and hooks; it must be loaded before torch is imported.
"""

import ctypes
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mova_engine.errors import MovaError

LIBRARY = "mova_kernels._fake_cuda"


def prepare_device(name: str) -> None:
    """Register `name` ("cpu", "cuda" or "npu") as a device for fake tensors. Call it before torch is imported.

    Raises MovaError if torch supports the real device here, or if the library of the stand-in is missing.
    """
    if name == "cuda":
        _prepare_cuda()
    elif name == "npu":
        _prepare_npu()


def _prepare_cuda() -> None:
    if "torch" in sys.modules:
        raise RuntimeError("a fake CUDA device must be there before torch is imported")
    torch_package = importlib.util.find_spec("torch")
    assert torch_package is not None and torch_package.origin is not None, "torch is a dependency of this package"
    torch_folder = Path(torch_package.origin).parent
    if list((torch_folder / "lib").glob("libtorch_cuda*")):
        raise MovaError(
            "a rehearsal for cuda needs a CPU build of torch, and the installed one was built with CUDA: make an "
            "environment with `make setup` (README.md, Other machines), or rehearse with --device cpu"
        )
    found = importlib.util.find_spec(LIBRARY)
    if found is None:
        raise MovaError(
            f"a rehearsal for cuda needs the library {LIBRARY}, which is not built: `make native` builds it with CMake "
            "and a C++ compiler; --device npu and cpu need none"
        )
    # The library needs their symbols; torch loads the same files when it is imported.
    for library in ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / library), ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL(found.origin)
    except OSError as error:
        raise MovaError(
            f"{LIBRARY} does not load ({error}): build it again for this torch with `make native`"
        ) from None
    import torch

    module = _FakeDeviceModule("cuda")
    for attribute in (name for name in dir(module) if not name.startswith("__")):
        setattr(torch.cuda, attribute, getattr(module, attribute))


def _prepare_npu() -> None:
    if importlib.util.find_spec("torch_npu") is not None:
        raise MovaError(
            "a rehearsal for npu makes a device of that name, and the installed torch_npu has one: use an environment "
            "without torch_npu, such as that of `make setup`"
        )
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend("npu", _FakeDeviceModule("npu"))


class _FakeDeviceModule:
    """Stands for `torch.npu` or `torch.cuda`: one device, on whose streams nothing is ever pending."""

    def __init__(self, name: str) -> None:
        import torch

        self.Stream, self.Event, self._name = torch.Stream, torch.Event, name

    def current_stream(self, device: Any = None) -> Any:
        return self.Stream(self._name)

    def default_stream(self, device: Any = None) -> Any:
        return self.Stream(self._name)

    def stream(self, stream: Any) -> Any:
        return nullcontext() if stream is None else stream

    def synchronize(self, device: Any = None) -> None:
        pass

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _lazy_init(self) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def get_device_properties(self, device: Any = None) -> SimpleNamespace:
        # Compute capability 8.0, the lowest that the fused kernels support: torch refuses some operations below it.
        return SimpleNamespace(name=f"{self._name}, fake", total_memory=0, major=8, minor=0)

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[Any]:
        import torch

        return [torch.bfloat16, torch.float16]
