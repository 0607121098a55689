"""Operators: one table of declarations, bound once per model to the device's implementations.

    from mova_engine.backend import get_backend
    from mova_engine.ops import Machine, bind, choose

    ops = bind(get_backend("cpu"))                                # the best that this machine can serve
    ops = bind(get_backend("cpu"), {"attention": "reference"})    # an explicit choice, or an error with the reason
    choose(Machine("cuda", (9, 0), frozenset({"flash-attn-3"})))  # what a machine would use that is not here

Declarations, and choosing by them, import no torch; what binds is imported when it is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mova_engine.ops.choice import choose
from mova_engine.ops.declarations import REFERENCE, Choice, Implementation, Operator, resolve
from mova_engine.ops.machine import Machine
from mova_engine.ops.table import OPERATORS

if TYPE_CHECKING:
    from mova_engine.ops.registry import COMPUTE_DTYPES, DTYPES, OpTable, bind, bind_operator, refusal, torch_dtypes

__all__ = [
    "OPERATORS",
    "COMPUTE_DTYPES",
    "DTYPES",
    "REFERENCE",
    "Choice",
    "Implementation",
    "Machine",
    "OpTable",
    "Operator",
    "bind",
    "bind_operator",
    "choose",
    "refusal",
    "resolve",
    "torch_dtypes",
]
_BINDING = ("COMPUTE_DTYPES", "DTYPES", "OpTable", "bind", "bind_operator", "refusal", "torch_dtypes")


def __getattr__(name: str) -> Any:
    if name not in _BINDING:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module("mova_engine.ops.registry"), name)
