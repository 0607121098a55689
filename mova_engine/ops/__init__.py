"""Operators: one table of declarations, bound once per model to the device's implementations.

    from mova_engine.backend import get_backend
    from mova_engine.ops import bind

    ops = bind(get_backend("cpu"))                                # the best that this machine can serve
    ops = bind(get_backend("cpu"), {"attention": "reference"})    # an explicit choice, or an error with the reason
"""

from collections.abc import Iterable, Mapping

import torch

from mova_engine.backend import Backend
from mova_engine.ops.declarations import COMPUTE_DTYPES, REFERENCE, Implementation, Operator, resolve
from mova_engine.ops.registry import Choice, OpTable, bind_operator, bind_operators, refusal
from mova_engine.ops.table import OPERATORS

__all__ = [
    "OPERATORS",
    "COMPUTE_DTYPES",
    "REFERENCE",
    "Choice",
    "Implementation",
    "OpTable",
    "Operator",
    "bind",
    "bind_operator",
    "refusal",
    "resolve",
]


def bind(
    backend: Backend,
    choices: Mapping[str, str] | str | None = None,
    *,
    training: bool = True,
    operators: Mapping[str, Operator] = OPERATORS,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> OpTable:
    """Bind every operator to a callable for `backend`.

    choices: {operator: implementation} that must be met, or "reference" for all; the rest is chosen automatically,
    first fit. training=False also admits kernels without a gradient. operators: the table, e.g. with your own
    implementation added (`Operator.with_implementation`). dtypes: what the model computes in; on a CPU an
    implementation must run in those of them that it declares. Raises MovaError with the reason when a choice cannot be
    met.
    """
    return bind_operators(operators, backend, choices, training, dtypes)
