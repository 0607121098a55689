"""Choosing implementations: by what is declared of them, on this machine and on one that is not here alike."""

from collections.abc import Iterable, Mapping

from mova_engine.errors import MovaError, suggest
from mova_engine.ops.declarations import REFERENCE, Choice, Implementation, Operator
from mova_engine.ops.machine import Machine
from mova_engine.ops.table import OPERATORS

# What a model may compute in.
DTYPES = ("float32", "bfloat16", "float16", "float64")


def refusal(
    operator: Operator, implementation: Implementation, machine: Machine, training: bool, dtypes: tuple[str, ...]
) -> str | None:
    """Why an implementation of an operator cannot serve on a machine; None when it can.

    A machine that is here is asked what its declaration cannot tell; a CPU runs it in each of `dtypes` that it
    declares.
    """
    declared = implementation.refusal(machine, training)
    return declared or machine.tried(operator, implementation, training, dtypes)


def _unfit(operator: Operator, implementation: Implementation, dtypes: tuple[str, ...]) -> str | None:
    """Why an implementation is not chosen automatically."""
    if not implementation.automatic:
        # Not asked whether it could serve: that would import a compiler.
        return "is used only when named"
    missing = [name for name in operator.called_in or dtypes if name not in implementation.dtypes]
    return f"takes {' and '.join(implementation.dtypes)}, not {missing[0]}" if missing else None


def choose_operator(
    operator: Operator, machine: Machine, wanted: str | None, training: bool, dtypes: tuple[str, ...]
) -> Choice:
    """Of one operator: the wanted implementation or MovaError with the reason; without a wish, the first that serves,
    of those that were timed on this machine the fastest.

    dtypes: names of those that the model computes in, all of which an automatically chosen implementation must support.
    """
    if wanted is not None and wanted not in operator.choices():
        raise MovaError(
            f"operator {operator.name} has no implementation '{wanted}'.{suggest(wanted, operator.choices())} "
            f"Known: {', '.join(operator.choices())}"
        )
    refused: list[tuple[str, str]] = []
    timed = machine.timed(operator.name, training, operator.called_in or dtypes) if wanted is None else ()
    for implementation in _fastest_first(operator.preferred(machine), timed):
        if wanted not in (None, implementation.name):
            continue
        reason = _unfit(operator, implementation, dtypes) if wanted is None else None
        reason = reason or refusal(operator, implementation, machine, training, dtypes)
        if reason is None:
            return Choice(operator.name, implementation.name, tuple(refused), implementation.name in timed[:1])
        if wanted is not None:
            raise MovaError(f"operator {operator.name}: implementation '{wanted}' cannot serve: {reason}")
        refused.append((implementation.name, reason))
    return Choice(operator.name, REFERENCE, tuple(refused))


def _fastest_first(preferred: tuple[Implementation, ...], timed: tuple[str, ...]) -> tuple[Implementation, ...]:
    """The implementation that was measured to be the fastest before all that were timed with it. What was not timed, as
    a caller's own, keeps its place.
    """
    fastest = next((entry for entry in preferred if entry.name in timed[:1]), None)
    if fastest is None:
        return preferred
    others = [entry for entry in preferred if entry is not fastest]
    place = next((i for i, entry in enumerate(others) if entry.name in timed), len(others))
    return (*others[:place], fastest, *others[place:])


def candidates(
    operator: Operator, machine: Machine, training: bool, dtypes: tuple[str, ...]
) -> tuple[Implementation, ...]:
    """The implementations that can serve and need not be named, in the declared order of preference."""
    return tuple(
        entry
        for entry in operator.preferred(machine)
        if _unfit(operator, entry, dtypes) is None and refusal(operator, entry, machine, training, dtypes) is None
    )


def choose(
    machine: Machine,
    choices: Mapping[str, str] | str | None = None,
    *,
    training: bool = True,
    dtype: str | Iterable[str] = "bfloat16",
    operators: Mapping[str, Operator] = OPERATORS,
) -> tuple[Choice, ...]:
    """What each operator would be bound to on a machine. Imports no torch for a machine that is not here.

    choices: {operator: implementation} that must be met, or "reference" for all. training: kernels without a gradient
    are refused. dtype: name of what the model computes in, or several names. MovaError when a choice cannot be met.
    """
    dtypes = (dtype,) if isinstance(dtype, str) else tuple(dtype)
    for name in dtypes:
        if name not in DTYPES:
            raise MovaError(f"unknown dtype '{name}'.{suggest(name, DTYPES)} Known: {', '.join(DTYPES)}")
    if isinstance(choices, str):
        if choices != REFERENCE:
            raise MovaError(
                f"one word for all operators can only be '{REFERENCE}', got '{choices}'; else name them: attention=sdpa"
            )
        choices = dict.fromkeys(operators, REFERENCE)
    choices = choices or {}
    for name in choices:
        if name not in operators:
            raise MovaError(f"unknown operator '{name}'.{suggest(name, operators)} Known: {', '.join(operators)}")
    return tuple(
        choose_operator(operator, machine, choices.get(name), training, dtypes) for name, operator in operators.items()
    )


def describe_choices(
    machine: Machine,
    *,
    training: bool = True,
    dtype: str = "bfloat16",
    operators: Mapping[str, Operator] = OPERATORS,
) -> list[str]:
    """Lines: what each operator would use on a machine, and why not the others."""
    lines: list[str] = []
    for choice in choose(machine, training=training, dtype=dtype, operators=operators):
        operator = operators[choice.operator]
        chosen = next((i.label for i in operator.implementations if i.name == choice.implementation), REFERENCE)
        lines.append(f"{operator.name:28} -> {chosen}{', by measurement' * choice.measured}")
        for implementation in operator.preferred(machine):
            if implementation.name == choice.implementation:
                continue
            unfit = _unfit(operator, implementation, (dtype,)) if implementation.automatic else None
            # What is used only when named is tried when it is.
            asked = refusal if implementation.automatic else _declared
            reason = unfit or asked(operator, implementation, machine, training, (dtype,))
            also = f"also {implementation.label}{'' if implementation.automatic else ' (when named)'}"
            lines.append(f"{'':31}{f'not {implementation.label}: {reason}' if reason else also}")
    return lines


def _declared(
    operator: Operator, implementation: Implementation, machine: Machine, training: bool, dtypes: tuple[str, ...]
) -> str | None:
    return implementation.refusal(machine, training)
