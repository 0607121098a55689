"""Loading of `mova_kernels._C`, which setup builds where CMake and a C++ compiler are at hand."""

import functools
import importlib
import os

# This environment variable names the kernel set to use, one of `isas()`, instead of the best.
ISA = "MOVA_CPU_ISA"
# That of csrc/module.cpp.
_INTERFACE = 5


@functools.cache
def unavailable() -> str | None:
    """Why the native library cannot be used, in words a user can act on; None when it is loaded."""
    try:
        # torch's libraries, which it links to, must be in the process first.
        operators = importlib.import_module("torch").ops.mova_kernels
        importlib.import_module("mova_kernels._C")
    except ModuleNotFoundError as error:
        if error.name != "mova_kernels._C":
            return f"{error.name} is not installed"
        return "mova_kernels._C is not built; `make native` builds it (CMake and a C++ compiler needed)"
    except ImportError as error:
        reason = str(error).splitlines()[0]
        return f"mova_kernels._C does not load ({reason}); if torch changed since it was built, run `make native` again"
    if not hasattr(operators, "interface") or operators.interface() != _INTERFACE:
        return "mova_kernels._C was built from other sources than these; run `make native` again"
    asked = os.environ.get(ISA)
    if asked and asked not in operators.cpu_isas():
        return f"{ISA} asks for {asked} kernels; it can name one of {', '.join(operators.cpu_isas())} on this CPU"
    if asked:
        operators.use_cpu_isa(asked)
    return None


def load():
    """Return `torch.ops.mova_kernels`, the namespace of the native operators; ImportError with the reason if absent."""
    reason = unavailable()
    if reason:
        raise ImportError(reason)
    import torch

    return torch.ops.mova_kernels


def features() -> tuple[str, ...]:
    """Usable instruction sets, out of `avx2` (with FMA), `avx512` (F, DQ, BW, VL), `avx512_bf16` and `amx_bf16`."""
    return tuple(load().cpu_features())


def isas() -> tuple[str, ...]:
    """Kernel sets that this CPU can run, out of `baseline`, `avx2`, `avx512` and `avx512_bf16`, the best last."""
    return tuple(load().cpu_isas())


def isa() -> str:
    """The kernel set in use: the best, unless MOVA_CPU_ISA or `use_isa` names another."""
    return load().cpu_isa()


def use_isa(name: str) -> None:
    """Use one of `isas()` in this process from now on; ValueError for another. For tests and measurements."""
    load().use_cpu_isa(name)


def threaded() -> bool:
    """Whether the kernels use torch's threads; False where the library was built by a compiler without its OpenMP."""
    return load().cpu_threaded()
