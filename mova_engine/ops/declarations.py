"""What is declared of an operator and of each way to compute it. Reading a declaration imports no implementation."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mova_engine.errors import MovaError
from mova_engine.ops.machine import PRODUCTS, Machine, Version

REFERENCE = "reference"
# From a first compute capability to a last one; None: to the newest.
Generations = tuple[Version, Version | None]


@dataclass(frozen=True)
class Passes:
    """How often memory is passed over: reads and writes of the operator's activations, in their own dtype.

    forward, backward: of one call. ungated: the same (forward, backward) without a gate, where the operator has one.
    """

    forward: float
    backward: float
    ungated: tuple[float, float] | None = None

    def of(self, gate: bool = True) -> tuple[float, float]:
        """(forward, backward)."""
        return (self.forward, self.backward) if gate or self.ungated is None else self.ungated


@dataclass(frozen=True)
class Rate:
    """FLOP/s as shares of the device's dense peak in the same dtype, forward and backward, on some GPUs (None: any)."""

    forward: float
    backward: float
    generations: Generations | None = None


@dataclass(frozen=True)
class Order:
    """Which implementations come first on NVIDIA GPUs of some generations, the fastest first; the others follow in the
    order in which they are declared.
    """

    generations: Generations
    names: tuple[str, ...]


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    target: "module:attribute", imported only when bound. devices: torch device names, or () for any.
    needs: packages, each "package" or "package:attribute" (an attribute tells apart packages that share a name), or one
    of the engine's own LIBRARIES, of which `check` tells whether it was built.
    generations: of NVIDIA GPUs that it runs on. products: of Ascend, () for any.
    check: "module:attribute" of a function `(backend) -> reason | None` for limits that only the machine can tell.
    differentiable: False for inference-only kernels, which a table bound for training refuses.
    dtypes: names of the dtypes that it takes; others raise at the call. Not chosen by itself where it does not take all
    that a model computes in.
    deterministic: False for what may give other bits each time, and knows no switch against it.
    automatic: False for what is used only when a caller names it.
    calls: the functions of PyTorch or a vendor that do the work, where the name does not say it.
    trial: "module:attribute" of a function `() -> reason | None` that tries it on a CPU, instead of a case of its
    operator; for what takes seconds.
    passes: over memory; None: the operator's least. of_sum: the passes of its attribute of that name, which takes what
    a product has added the bias to. rates: of an attention.
    """

    name: str
    target: str
    devices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    generations: Generations | None = None
    products: tuple[str, ...] = ()
    check: str | None = None
    differentiable: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    deterministic: bool = True
    automatic: bool = True
    trial: str | None = None
    calls: tuple[str, ...] = ()
    passes: Passes | None = None
    of_sum: Passes | None = None
    rates: tuple[Rate, ...] = ()

    @property
    def label(self) -> str:
        """The name, and the functions that it calls."""
        return f"{self.name} ({', '.join(self.calls)})" if self.calls else self.name

    def refusal(self, machine: Machine, training: bool) -> str | None:
        """Why, by what is declared of it, this implementation cannot serve on `machine`; None where it may."""
        if self.devices and machine.kind not in self.devices:
            return f"runs on {' or '.join(self.devices)}, not on {machine.kind}"
        if training and not self.differentiable:
            return "has no gradient; bind(..., training=False) accepts it"
        lacking = next(filter(None, map(machine.lacks, self.needs)), None)
        if lacking:
            return lacking
        if self.generations and (outside := machine.outside(*self.generations)):
            return outside
        if self.products and machine.capability in PRODUCTS and machine.capability not in self.products:
            return f"runs on Ascend {' or '.join(self.products)}, not on {machine.capability}"
        return None

    def rate(self, machine: Machine) -> Rate | None:
        """Of an attention on a machine; None where nothing is known."""
        return next((r for r in self.rates if r.generations is None or _within(machine.version, r.generations)), None)


@dataclass(frozen=True)
class Operator:
    """An operator's declaration. `kind` is "function" (values and gradients judged), "optimizer" (a factory) or
    "inplace" (changes its arguments).

    formula: "module:attribute" of the reference. small: of small inputs, on which an implementation is tried before it
    is bound on a CPU. rounding: of forms of the reference with those roundings of intermediate results that fused
    kernels cannot avoid, where there are any; the judgement allows them.
    called_in: the dtypes that it is called in whatever a model computes in; (): what the model computes in.
    orders: of preference on some machines. least: passes over memory of a fused kernel. composed: of the reference.
    """

    name: str
    formula: str
    small: str
    slack: float
    implementations: tuple[Implementation, ...] = ()
    differentiable: tuple[str, ...] = ()
    kind: str = "function"
    rounding: str | None = None
    called_in: tuple[str, ...] = ()
    orders: tuple[Order, ...] = ()
    least: Passes | None = None
    composed: Passes | None = None

    @property
    def reference(self) -> Callable[..., Any]:
        """The formula in PyTorch, as a function."""
        return resolve(self.formula)

    @property
    def example(self) -> Callable[..., dict[str, Any]]:
        """`(generator, device, dtype) -> inputs`."""
        return resolve(self.small)

    @property
    def rounded(self) -> tuple[Callable[..., Any], ...]:
        """The forms of the reference with roundings."""
        return resolve(self.rounding) if self.rounding else ()

    def choices(self) -> tuple[str, ...]:
        return (*(i.name for i in self.implementations), REFERENCE)

    def preferred(self, machine: Machine) -> tuple[Implementation, ...]:
        """The implementations in their order of preference on a machine."""
        order = next((o for o in self.orders if _within(machine.version, o.generations)), None)
        ranks = {name: rank for rank, name in enumerate(order.names if order else ())}
        return tuple(sorted(self.implementations, key=lambda i: ranks.get(i.name, len(ranks))))

    def passes(self, name: str) -> Passes | None:
        """Over memory, of an implementation by name or of the reference; None where they are not known."""
        if name == REFERENCE:
            return self.composed
        return next(i.passes or self.least for i in self.implementations if i.name == name)

    def with_implementation(self, implementation: Implementation) -> "Operator":
        """A copy that prefers `implementation`: how a downstream trainer adds its own."""
        if implementation.name in self.choices():
            raise MovaError(f"operator {self.name} already has an implementation named '{implementation.name}'")
        orders = tuple(replace(order, names=(implementation.name, *order.names)) for order in self.orders)
        return replace(self, implementations=(implementation, *self.implementations), orders=orders)


@dataclass(frozen=True)
class Choice:
    """What was chosen for one operator, and why each preferred implementation was passed over. measured: it was the
    fastest of those that were timed on this machine (`measured_choices`).
    """

    operator: str
    implementation: str
    refused: tuple[tuple[str, str], ...] = ()
    measured: bool = False

    @property
    def label(self) -> str:
        """`attention=sdpa`, with a mark where it was measured."""
        return f"{self.operator}={self.implementation}{' (measured)' * self.measured}"


def _within(version: Version | None, generations: Generations) -> bool:
    least, last = generations
    return version is not None and version >= least and (last is None or version <= last)


def resolve(target: str) -> Any:
    """Import "module:attribute" and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
