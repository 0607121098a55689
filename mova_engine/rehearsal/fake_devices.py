"""Devices that are not here, for tensors without data. Everything in this file changes torch for the whole process.

Autograd, FSDP2 and checkpointing ask a device for streams, events and its current index even where no tensor has data.
An NPU is torch's own Python backend (`PrivateUse1`, renamed). A CUDA device is a small library (`csrc/fake_cuda`) of
torch's device guard and hooks, which must be there before torch first asks for them, so before it is imported.
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
    """Make `name` ("cpu", "cuda", "npu") a device on which fake tensors can lie. Before torch is imported.

    Raises MovaError where this machine has the device, or what it would be made of is missing.
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
    # As torch loads them itself a moment later; the library takes its symbols from them.
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
    """What torch finds as `torch.npu` or `torch.cuda`: one device, whose streams have always caught up."""

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
        # Of NVIDIA's generations the oldest that the engine's fused kernels are for: torch asks for what it may refuse.
        return SimpleNamespace(name=f"{self._name}, fake", total_memory=0, major=8, minor=0)

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[Any]:
        import torch

        return [torch.bfloat16, torch.float16]
