"""Whether this CPU runs an implementation: tried once on its operator's example.

Instruction sets and their limits (`ONEDNN_MAX_CPU_ISA`, `ATEN_CPU_CAPABILITY`) decide within PyTorch and oneDNN which
kernels there are, by rules that change with their versions. So the implementation itself is asked.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops.declarations import Implementation, Operator, resolve

_SEED = 2026


@functools.cache
def failure(operator: Operator, implementation: Implementation, dtype: torch.dtype, training: bool) -> str | None:
    """The first line of what the implementation raises on this CPU in `dtype`; None when it runs.

    training: its gradients are computed too. The result is kept for the life of the process.
    """
    inputs = operator.example(torch.Generator().manual_seed(_SEED), torch.device("cpu"), dtype)
    try:
        _RUNS[operator.kind](operator, resolve(implementation.target), inputs, training)
    except (RuntimeError, MovaError) as error:
        # What torch advises on its own variables, after the first sentence, is of no use here.
        return str(error).splitlines()[0].split(". ")[0]
    return None


def _run_function(operator: Operator, function: Callable[..., Any], inputs: dict[str, Any], training: bool) -> None:
    if not training:
        with torch.no_grad():
            function(**inputs)
        return
    leaves = [inputs[name].requires_grad_() for name in operator.differentiable if inputs[name] is not None]
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if leaves:
        torch.autograd.grad([x.sum() for x in outputs], leaves, allow_unused=True)


def _run_optimizer(operator: Operator, factory: Callable[..., Any], inputs: dict[str, Any], training: bool) -> None:
    if not training:
        return
    params: list[Tensor] = inputs["params"]
    optimizer = factory(params, **inputs["options"])
    for p, g in zip(params, inputs["grads"][0], strict=True):
        p.grad = g
    optimizer.step()


def _run_inplace(operator: Operator, function: Callable[..., Any], inputs: dict[str, Any], training: bool) -> None:
    function(**inputs)


_RUNS = {"function": _run_function, "optimizer": _run_optimizer, "inplace": _run_inplace}
