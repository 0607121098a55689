"""Which implementations a deterministic run may use."""

from collections.abc import Mapping
from dataclasses import replace

from mova_engine.errors import MovaError
from mova_engine.ops.declarations import Operator


def deterministic_operators(operators: Mapping[str, Operator], named: Mapping[str, str]) -> dict[str, Operator]:
    """`operators` without the implementations that may give other bits each time. named: those asked for, by operator.

    Raises MovaError where one that may is asked for.
    """
    for name, wanted in named.items():
        each = operators.get(name)
        if each is not None and any(x.name == wanted and not x.deterministic for x in each.implementations):
            others = ", ".join(x.name for x in each.implementations if x.deterministic)
            raise MovaError(
                f"--deterministic: ops.{name} {wanted} adds gradients in an order that changes from run to run: leave "
                f"it out, or name one of {others}"
            )
    return {
        name: replace(each, implementations=tuple(x for x in each.implementations if x.deterministic))
        for name, each in operators.items()
    }
