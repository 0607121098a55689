"""Loading of the library that CMake builds from `csrc/cuda`, and calls of its functions.

The library has plain C functions on device pointers and knows nothing of torch: it is built without torch, by any CUDA
toolkit, and serves every version of torch. Setup builds it where MOVA_BUILD_CUDA asks for it.
"""

import ctypes
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# That of csrc/cuda/library.cu.
_INTERFACE = 1
_REMEDY = "`make cuda` builds it (CMake and nvcc needed)"
_LOWEST = (8, 0)
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Arguments before dtype, device and stream, with which every launch ends. p pointer, l int64, i int, f float.
_LAUNCHES = {
    "norm_modulate_fwd": "pll pl pl ppp iii f",
    "norm_modulate_bwd": "pll pll pl pp ppp iii i",
    "rms_norm_rope_fwd": "pll ppp pp iiii f i",
    "rms_norm_rope_bwd": "pll pll pppp pp iiii i i",
    "column_sums": "pp iii",
}
_TYPES = {"p": ctypes.c_void_p, "l": ctypes.c_int64, "i": ctypes.c_int, "f": ctypes.c_float}


@dataclass(frozen=True)
class Library:
    """The functions of a loaded library and the type of device whose memory they take."""

    functions: ctypes.CDLL
    device: str = "cuda"

    @classmethod
    def open(cls, path: Path, device: str = "cuda") -> "Library":
        """Load the library at `path`; OSError if it does not load, ValueError if built from other sources."""
        functions = ctypes.CDLL(str(path))
        if not hasattr(functions, "mova_cuda_interface") or functions.mova_cuda_interface() != _INTERFACE:
            raise ValueError(f"{path.name} was built from other sources than these; {_REMEDY} again")
        functions.mova_cuda_error.restype = ctypes.c_char_p
        for name, arguments in _LAUNCHES.items():
            function = getattr(functions, f"mova_cuda_{name}")
            function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "") + "iip"]
        return cls(functions, device)

    def launch(self, name: str, dtype: torch.dtype, at: Tensor, *arguments: Tensor | int | float) -> None:
        """Start a kernel on the device of `at` and its current stream. A tensor is passed as its address.

        Raises ValueError for a device of another type, RuntimeError with CUDA's words when the launch is refused.
        """
        if at.device.type != self.device:
            raise ValueError(f"{name}: x is on {at.device}; the CUDA C++ kernels run on {self.device} only")
        values = (x.data_ptr() if isinstance(x, Tensor) else x for x in arguments)
        with torch.cuda.device_of(at):
            stream = torch.cuda.current_stream().cuda_stream if at.is_cuda else None
            place = (_DTYPES[dtype], at.device.index or 0, stream)
            code = getattr(self.functions, f"mova_cuda_{name}")(*values, *place)
        self._check(name, code)

    def multiprocessors(self, x: Tensor) -> int:
        """How many the device of x has."""
        count = ctypes.c_int()
        code = self.functions.mova_cuda_multiprocessors(ctypes.byref(count), x.device.index or 0)
        self._check("multiprocessors", code)
        return count.value

    def _check(self, name: str, code: int) -> None:
        if code:
            words = self.functions.mova_cuda_error(code).decode()
            raise RuntimeError(f"{name}: CUDA refused it: {words} (error {code})")


@functools.cache
def _opened() -> Library | str:
    """The library, or why there is none."""
    found = sorted(Path(__file__).parents[1].glob("_cuda*.so"))
    if not found:
        return f"mova_kernels._cuda is not built; {_REMEDY}"
    try:
        return Library.open(found[0])
    except ValueError as error:
        return str(error)
    except OSError as error:
        return f"{found[0].name} does not load ({error}); {_REMEDY} again"


def unavailable() -> str | None:
    """Why the kernels cannot run here, in words a user can act on; None when they can."""
    opened = _opened()
    if isinstance(opened, str):
        return opened
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU; check `nvidia-smi` and the driver"
    capability = torch.cuda.get_device_capability()
    if capability < _LOWEST:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {capability[0]}.{capability[1]}; the kernels need 8.0 or higher"
    return None


def load() -> Library:
    """The library; ImportError with the reason where it is not built or does not load."""
    opened = _opened()
    if isinstance(opened, str):
        raise ImportError(opened)
    return opened
