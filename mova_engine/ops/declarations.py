"""What is declared of an operator and of each way to compute it. Reading a declaration imports no implementation."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mova_engine.backend import Backend
from mova_engine.errors import MovaError
from mova_engine.ops.inputs import Make

REFERENCE = "reference"
# What models compute in, unless a caller of `bind` says otherwise.
COMPUTE_DTYPES = (torch.float32, torch.bfloat16)


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

    example: small inputs, on which an implementation is tried before it is bound on a CPU.
    rounded: forms of the reference with those roundings of intermediate results that fused kernels cannot avoid, where
    there are any; the judgement allows them.
    """

    name: str
    reference: Callable[..., Any]
    example: Make
    slack: float
    implementations: tuple[Implementation, ...] = ()
    differentiable: tuple[str, ...] = ()
    kind: str = "function"
    rounded: tuple[Callable[..., Any], ...] = ()

    def choices(self) -> tuple[str, ...]:
        return (*(i.name for i in self.implementations), REFERENCE)

    def with_implementation(self, implementation: Implementation) -> "Operator":
        """A copy that prefers `implementation`: how a downstream trainer adds its own."""
        if implementation.name in self.choices():
            raise MovaError(f"operator {self.name} already has an implementation named '{implementation.name}'")
        fields = {**self.__dict__, "implementations": (implementation, *self.implementations)}
        return Operator(**fields)


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
