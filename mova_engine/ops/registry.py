"""A table of operators bound to a device.

An operator is declared once, as data: its reference (pure PyTorch, reads like the formula, its signature is the
schema), its cases (inputs for tests and benchmarks), its slack (allowed error, as a multiple of the noise that the
reference makes in the same dtype against float64, see `noise.py`), and its implementations in order of preference.
`bind` resolves them once into an `OpTable` of plain callables, which models take as a constructor argument: no globals,
no look-up per call.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from mova_engine.backend import Backend
from mova_engine.errors import MovaError, suggest
from mova_engine.ops import choice as choosing
from mova_engine.ops.custom_ops import AttentionKernels, trained_attention
from mova_engine.ops.declarations import REFERENCE, Choice, Implementation, Operator, resolve
from mova_engine.ops.fused_linear import forms, shared_linear
from mova_engine.ops.machine import LIBRARIES, PRODUCTS, Machine, Version
from mova_engine.ops.measured_choices import MeasuredChoices, read_choices
from mova_engine.ops.table import OPERATORS
from mova_engine.ops.trial import failure

# What models compute in, unless a caller of `bind` says otherwise.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16)
# The same by the names of settings and command lines.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Function = Callable[..., Any]
# Attention under a second name, where its place in the model decides how it is computed by several processes or under
# checkpointing: the video tower's self-attention, and the bridge's attention from audio to video tokens.
ROLES = ("video_attention", "video_to_audio_attention")


@dataclass(frozen=True)
class OpTable:
    """Every operator, and form made of operators, bound to one callable: `table.rms_norm(x, weight, eps=1e-6)`.

    Frozen; pass it to constructors.
    """

    device: str
    functions: Mapping[str, Function] = field(repr=False)
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        for name, function in self.functions.items():
            object.__setattr__(self, name, function)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Function:
            """Type checkers take every name for an operator's."""
            ...

    def replaced(self, **functions: Function) -> "OpTable":
        """A table in which the given operators or forms are wrapped or replaced, e.g. a role of attention by its
        context-parallel form. Forms follow their operators unless they are given too.
        """
        unknown = [name for name in functions if name not in self.functions]
        if unknown:
            raise MovaError(f"unknown operator '{unknown[0]}'.{suggest(unknown[0], self.functions)}")
        followed = _made_of({**self.functions, **functions}, functions.keys())
        return OpTable(self.device, {**self.functions, **followed, **functions}, self.choices)


def _roles(functions: Mapping[str, Function]) -> dict[str, Function]:
    """What the roles of attention are in one process."""
    attention = functions["attention"]
    kernels = AttentionKernels(functions["attention_lse"], functions["attention_backward"], attention=attention)
    return dict(zip(ROLES, (trained_attention(attention, kernels), attention), strict=True))


# Forms: what models call that is made of operators, by the operators that it is made of.
_FORMS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Function]], dict[str, Function]]], ...] = (
    (frozenset({"attention", "attention_lse", "attention_backward"}), _roles),
    (frozenset({"bias_gelu"}), forms),
)


def _made_of(functions: Mapping[str, Function], changed: Iterable[str]) -> dict[str, Function]:
    """The forms that use one of the `changed` operators."""
    made: dict[str, Function] = {}
    for uses, build in _FORMS:
        if uses <= functions.keys() and not uses.isdisjoint(changed):
            made |= build(functions)
    return made


class ThisMachine(Machine):
    """The machine that this process runs on, with one of its devices: asked where another is assumed."""

    backend: Backend

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend.name, None if backend.unavailable() else _capability(backend))
        object.__setattr__(self, "backend", backend)

    @cached_property
    def measured(self) -> MeasuredChoices:
        """What was measured on this device, if anything."""
        return read_choices(self.backend)

    def timed(self, operator: str, training: bool, dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return () if self.backend.unavailable() else self.measured.timed(operator, training, dtypes)

    def lacks(self, need: str) -> str | None:
        return None if need in LIBRARIES else _lacking(need)

    def outside(self, least: Version, last: Version | None) -> str | None:
        return self.backend.unavailable() or super().outside(least, last)

    def tried(
        self, operator: Operator, implementation: Implementation, training: bool, dtypes: tuple[str, ...]
    ) -> str | None:
        reason = resolve(implementation.check)(self.backend) if implementation.check else None
        if reason is not None or self.kind != "cpu" or self.backend.unavailable():
            return reason
        if implementation.trial:
            return resolve(implementation.trial)()
        for name in dtypes:
            if name in implementation.dtypes:
                failed = failure(operator, implementation, getattr(torch, name), training)
                if failed is not None:
                    return f"fails on this CPU in {name}: {failed}"
        return None


def _capability(backend: Backend) -> Version | str | None:
    name = backend.describe()
    product = next((product for product, begin in PRODUCTS.items() if name.startswith(begin)), None)
    return product or backend.compute_capability()


def _lacking(need: str) -> str | None:
    """Why "package" or "package:attribute" is not there; None when it is."""
    package, _, attribute = need.partition(":")
    try:
        # A dotted name is looked for by importing what stands before its last dot.
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
        if attribute and not hasattr(importlib.import_module(package), attribute):
            return f"the installed package {package} has no {attribute}"
    except ModuleNotFoundError as error:
        return f"the package {error.name} is not installed"
    except ImportError as error:
        return f"the installed package {package} does not load: {str(error).splitlines()[0]}"
    return None


def dtype_names(dtypes: Iterable[torch.dtype]) -> tuple[str, ...]:
    """torch.bfloat16 -> "bfloat16", as declarations spell them."""
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)


def torch_dtypes(implementation: Implementation) -> tuple[torch.dtype, ...]:
    """The dtypes that an implementation takes."""
    return tuple(getattr(torch, name) for name in implementation.dtypes)


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
    return choosing.refusal(operator, implementation, ThisMachine(backend), training, dtype_names(dtypes))


def _function(operator: Operator, choice: Choice) -> Function:
    if choice.implementation == REFERENCE:
        return operator.reference
    return resolve(next(i.target for i in operator.implementations if i.name == choice.implementation))


def bind_operator(
    operator: Operator,
    backend: Backend,
    wanted: str | None = None,
    training: bool = True,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> tuple[Function, Choice]:
    """Resolve one operator: the wanted implementation or an error; without a wish, the first that can serve."""
    choice = choosing.choose_operator(operator, ThisMachine(backend), wanted, training, dtype_names(dtypes))
    return _function(operator, choice), choice


def bind(
    backend: Backend | None = None,
    choices: Mapping[str, str] | str | None = None,
    *,
    assume: Machine | None = None,
    training: bool = True,
    operators: Mapping[str, Operator] = OPERATORS,
    dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
) -> OpTable:
    """Bind every operator to a callable for `backend`, or for a machine that is not here.

    choices: {operator: implementation} that must be met, or "reference" for all; the rest is chosen automatically: the
    fastest where that was measured on this device (`mova bench operators --choose`), else first fit. assume: instead of
    `backend`; what is bound can be read (`table.choices`), and raises MovaError where it is called. training=False also
    admits kernels without a gradient. operators: the table, e.g. with your own implementation added
    (`Operator.with_implementation`). dtypes: what the model computes in; an automatically chosen implementation must
    support all of them, and on a CPU run in them. Raises MovaError with the reason when a choice cannot be met, and for
    a damaged file of measured choices.
    """
    machine = ThisMachine(backend) if backend is not None else assume
    if machine is None or (backend is not None and assume is not None):
        raise MovaError("bind takes a backend, or assume=Machine(...) for a machine that is not here: one of the two")
    chosen = choosing.choose(machine, choices, training=training, dtype=dtype_names(dtypes), operators=operators)
    if backend is None:
        names = (*operators, *ROLES, "shared_linear", "feed_forward", "gelu_of_product")
        return OpTable(machine.kind, {name: _not_here(name, machine) for name in names}, chosen)
    functions = {choice.operator: _function(operators[choice.operator], choice) for choice in chosen}
    return table_of(backend.name, functions, chosen)


def table_of(device: str, functions: Mapping[str, Function], choices: tuple[Choice, ...]) -> OpTable:
    """A table of these operators, and the forms that are made of them."""
    forms_of_them = {"shared_linear": shared_linear, **_made_of(functions, functions)}
    return OpTable(device, {**functions, **forms_of_them}, choices)


def _not_here(name: str, machine: Machine) -> Function:
    def absent(*args: Any, **kwargs: Any) -> Any:
        raise MovaError(
            f"operator {name} is bound for a machine that is not here ({machine}): such a table can be read, not "
            "called; bind a backend of this machine"
        )

    return absent
