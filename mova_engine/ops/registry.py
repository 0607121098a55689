"""How an operator is declared, and how a table of operators is bound to a device.

An operator is declared once, as data: its reference (pure PyTorch, reads like the formula, its signature is the
schema), its cases (inputs for tests and benchmarks), its slack (allowed error, as a multiple of the noise that the
reference makes in the same dtype against float64, see `noise.py`), and its implementations in order of preference.
`bind` resolves them once into an `OpTable` of plain callables, which models take as a constructor argument: no globals,
no look-up per call.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.errors import MovaError, suggest
from mova_engine.ops.declarations import COMPUTE_DTYPES, REFERENCE, Implementation, Operator, resolve
from mova_engine.ops.fused_linear import forms, shared_linear
from mova_engine.ops.saved_outputs import keeping
from mova_engine.ops.trial import failure

# Attention under a second name, where its place in the model decides how it is computed by several processes or under
# checkpointing: the video tower's self-attention, and the bridge's attention from audio to video tokens.
ROLES = ("video_attention", "video_to_audio_attention")


@dataclass(frozen=True)
class Choice:
    """What `bind` chose for one operator, and why each preferred implementation was passed over."""

    operator: str
    implementation: str
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class OpTable:
    """Every operator, and form made of operators, bound to one callable: `table.rms_norm(x, weight, eps=1e-6)`.

    Frozen; pass it to constructors.
    """

    device: str
    functions: Mapping[str, Callable[..., Any]] = field(repr=False)
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        for name, function in self.functions.items():
            object.__setattr__(self, name, function)

    def replaced(self, **functions: Callable[..., Any]) -> "OpTable":
        """A table in which the given operators or forms are wrapped or replaced, e.g. a role of attention by its
        context-parallel form. Forms follow their operators unless they are given too.
        """
        unknown = [name for name in functions if name not in self.functions]
        if unknown:
            raise MovaError(f"unknown operator '{unknown[0]}'.{suggest(unknown[0], self.functions)}")
        followed = _made_of({**self.functions, **functions}, functions.keys())
        return OpTable(self.device, {**self.functions, **followed, **functions}, self.choices)


def _roles(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """What the roles of attention are in one process."""
    attention = functions["attention"]
    kept = keeping(attention, functions["attention_lse"], functions["attention_backward"])
    return dict(zip(ROLES, (kept, attention), strict=True))


# Forms: what models call that is made of operators, by the operators that it is made of.
_FORMS = (
    (frozenset({"attention", "attention_lse", "attention_backward"}), _roles),
    (frozenset({"bias_gelu"}), forms),
)


def _made_of(functions: Mapping[str, Callable[..., Any]], changed: Iterable[str]) -> dict[str, Callable[..., Any]]:
    """The forms that use one of the `changed` operators."""
    made: dict[str, Callable[..., Any]] = {}
    for uses, build in _FORMS:
        if uses <= functions.keys() and not uses.isdisjoint(changed):
            made |= build(functions)
    return made


def refusal(
    operator: Operator,
    implementation: Implementation,
    backend: Backend,
    training: bool,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> str | None:
    """Why an implementation of an operator cannot serve on `backend`; None when it can.

    On a CPU it is tried: it must run in each of `dtypes` that it declares.
    """
    reason = implementation.refusal(backend, training)
    if reason is not None or backend.name != "cpu" or backend.unavailable():
        return reason
    if implementation.trial:
        return resolve(implementation.trial)()
    for dtype in dtypes:
        if dtype in implementation.torch_dtypes():
            failed = failure(operator, implementation, dtype, training)
            if failed is not None:
                return f"fails on this CPU in {str(dtype).removeprefix('torch.')}: {failed}"
    return None


def bind_operator(
    operator: Operator,
    backend: Backend,
    wanted: str | None = None,
    training: bool = True,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> tuple[Callable[..., Any], Choice]:
    """Resolve one operator: the wanted implementation or an error; without a wish, the first that can serve."""
    if wanted is not None and wanted not in operator.choices():
        raise MovaError(
            f"operator {operator.name} has no implementation '{wanted}'.{suggest(wanted, operator.choices())} "
            f"Known: {', '.join(operator.choices())}"
        )
    refused = []
    for implementation in operator.implementations:
        if wanted not in (None, implementation.name):
            continue
        if wanted is None and not implementation.automatic:
            # Not asked whether it could serve: that would import a compiler.
            refused.append((implementation.name, "is used only when named"))
            continue
        reason = refusal(operator, implementation, backend, training, dtypes)
        if reason is None:
            return resolve(implementation.target), Choice(operator.name, implementation.name, tuple(refused))
        if wanted is not None:
            raise MovaError(f"operator {operator.name}: implementation '{wanted}' cannot serve: {reason}")
        refused.append((implementation.name, reason))
    return operator.reference, Choice(operator.name, REFERENCE, tuple(refused))


def bind_operators(
    operators: Mapping[str, Operator],
    backend: Backend,
    choices: Mapping[str, str] | str | None = None,
    training: bool = True,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> OpTable:
    """Resolve all `operators` for `backend`. See `mova_engine.ops.bind`."""
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
    functions, chosen = {}, []
    for name, operator in operators.items():
        functions[name], choice = bind_operator(operator, backend, choices.get(name), training, tuple(dtypes))
        chosen.append(choice)
    return table_of(backend.name, functions, tuple(chosen))


def table_of(device: str, functions: Mapping[str, Callable[..., Any]], choices: tuple[Choice, ...]) -> OpTable:
    """A table of these operators, and the forms that are made of them."""
    forms_of_them = {"shared_linear": shared_linear, **_made_of(functions, functions)}
    return OpTable(device, {**functions, **forms_of_them}, choices)
