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
from mova_engine.ops import quantised_reference, reference


@functools.cache
def compiled(name: str) -> Callable[..., Any]:
    """The compiled reference of an operator."""
    return torch.compile(_reference(name), fullgraph=True)


def _reference(name: str) -> Callable[..., Any] | None:
    found = (getattr(module, f"{name}_reference", None) for module in (reference, quantised_reference))
    return next(filter(None, found), None)


def __getattr__(name: str) -> Callable[..., Any]:
    if _reference(name) is None:
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
        return None
    return None if importlib.util.find_spec("triton") else "the package triton is not installed"


@functools.cache
def compiles_here() -> str | None:
    """Why torch.compile fails on this CPU, tried once: a compiler that does not take what torch writes for it."""
    with torch.no_grad():
        try:
            torch.compile(_trial, fullgraph=True)(torch.ones(2, 64), torch.ones(64))
        except Exception as error:  # torch raises one of several, by version
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # The compiler's own first complaint says more than the exception's name.
            told = next((line.partition(" error: ")[2] for line in lines if " error: " in line), lines[-1])
            return f"torch.compile fails on this CPU: {told}"
    return None


def _trial(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x + y).tanh()
