"""`torch.compile` of the references: what a compiler makes of the formulas, to compare hand-written kernels with.

Each operator is an attribute of this module, compiled when it is first called with inputs of a new kind, which takes
seconds. So these serve only a caller who names them.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.ops import reference


@functools.cache
def compiled(name: str) -> Callable[..., Any]:
    """The compiled reference of an operator."""
    return torch.compile(getattr(reference, f"{name}_reference"), fullgraph=True)


def __getattr__(name: str) -> Callable[..., Any]:
    if not hasattr(reference, f"{name}_reference"):
        raise AttributeError(f"no operator '{name}' has a reference to compile")
    return compiled(name)


def check(backend: Backend) -> str | None:
    """The CPU needs a C++ compiler, other devices triton."""
    absent = backend.unavailable()
    if absent is not None:
        return absent
    if backend.device().type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except Exception as error:  # torch raises one of several, by version
            return f"torch.compile finds no C++ compiler: {str(error).splitlines()[0]}"
    elif importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None
