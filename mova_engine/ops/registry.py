"""How an operator is declared, and how a table of operators is bound to a device.

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
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.errors import MovaError, suggest
from mova_engine.ops.fused_linear import forms, shared_linear
from mova_engine.ops.saved_outputs import keeping

REFERENCE = "reference"
# What models compute in, unless a caller of `bind` says otherwise.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16)
# Attention under a second name, where its place in the model decides how it is computed by several processes or under
# checkpointing: the video tower's self-attention, and the bridge's attention from audio to video tokens.
ROLES = ("video_attention", "video_to_audio_attention")


@dataclass(frozen=True)
class Case:
    """One set of inputs: `make(generator, device, dtype)` returns keyword arguments of the operator.

    Floating tensors that the operator differentiates are those named in `Operator.differentiable`.
    `size` is "test" (fast everywhere) or "bench" (MOVA's real shapes). `elements`: of the largest activation, by
    which a benchmark leaves out what a device cannot hold or finish.
    """

    name: str
    make: Callable[[torch.Generator, torch.device, torch.dtype], dict[str, Any]]
    size: str = "test"
    elements: int = 0


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    target: "module:attribute", imported only when bound. devices: torch device names, or () for any.
    needs: packages, each "package" or "package:attribute" (an attribute tells apart packages that share a name).
    check: "module:attribute" of a function `(backend) -> reason | None` for limits that only code can tell.
    differentiable: False for inference-only kernels, which a table bound for training refuses.
    dtypes: names of the dtypes that it takes; others raise at the call.
    automatic: False for what is used only when a caller names it.
    calls: the functions of PyTorch or a vendor that do the work, where the name does not say it.
    trial: "module:attribute" of a function `() -> reason | None` that tries it on a CPU, instead of a case of its
    operator; for what takes seconds.
    """

    name: str
    target: str
    devices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    check: str | None = None
    differentiable: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    automatic: bool = True
    trial: str | None = None
    calls: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The name, and the functions that it calls."""
        return f"{self.name} ({', '.join(self.calls)})" if self.calls else self.name

    def torch_dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(getattr(torch, name) for name in self.dtypes)

    def refusal(self, backend: Backend, training: bool) -> str | None:
        """Why, by what is declared of it, this implementation cannot serve on `backend`; None where it may."""
        if self.devices and backend.name not in self.devices:
            return f"runs on {' or '.join(self.devices)}, not on {backend.name}"
        if training and not self.differentiable:
            return "has no gradient; bind(..., training=False) accepts it"
        lacking = next(filter(None, map(_lacking, self.needs)), None)
        if lacking:
            return lacking
        return resolve(self.check)(backend) if self.check else None


@dataclass(frozen=True)
class Operator:
    """An operator's declaration. `kind` is "function" (values and gradients judged), "optimizer" (a factory) or
    "inplace" (changes its arguments).

    rounded: forms of the reference with those roundings of intermediate results that fused kernels cannot avoid, where
    there are any; the judgement allows them.
    """

    name: str
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    slack: float
    implementations: tuple[Implementation, ...] = ()
    differentiable: tuple[str, ...] = ()
    kind: str = "function"
    rounded: tuple[Callable[..., Any], ...] = ()

    def refusal(
        self,
        implementation: Implementation,
        backend: Backend,
        training: bool,
        dtypes: Iterable[torch.dtype] = COMPUTE_DTYPES,
    ) -> str | None:
        """Why an implementation of this operator cannot serve on `backend`; None when it can.

        On a CPU it is tried: it must run in each of `dtypes` that it declares.
        """
        reason = implementation.refusal(backend, training)
        if reason is not None or backend.name != "cpu" or backend.unavailable():
            return reason
        if implementation.trial:
            return resolve(implementation.trial)()
        from mova_engine.ops.trial import failure

        for dtype in dtypes:
            if dtype in implementation.torch_dtypes():
                failed = failure(self, implementation, dtype, training)
                if failed is not None:
                    return f"fails on this CPU in {str(dtype).removeprefix('torch.')}: {failed}"
        return None

    def choices(self) -> tuple[str, ...]:
        return (*(i.name for i in self.implementations), REFERENCE)

    def with_implementation(self, implementation: Implementation) -> "Operator":
        """A copy that prefers `implementation`: how a downstream trainer adds its own."""
        if implementation.name in self.choices():
            raise MovaError(f"operator {self.name} already has an implementation named '{implementation.name}'")
        fields = {**self.__dict__, "implementations": (implementation, *self.implementations)}
        return Operator(**fields)


@dataclass(frozen=True)
class Choice:
    """What `bind` chose for one operator, and why each preferred implementation was passed over."""

    operator: str
    implementation: str
    refused: tuple[tuple[str, str], ...] = ()


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


def resolve(target: str) -> Any:
    """Import "module:attribute" and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


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
        reason = operator.refusal(implementation, backend, training, dtypes)
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
    functions |= {"shared_linear": shared_linear, **_made_of(functions, functions)}
    return OpTable(backend.name, functions, tuple(chosen))
