"""The rules by which `mutants.py` makes mutants: of arguments, of PyTorch's operations, of results.

A rule is a pair: whether it fits, and what it makes.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
HALVES = (torch.bfloat16, torch.float16)
# An offset or a constant below this is an epsilon: a few percent of it mean nothing.
_SMALL = 1e-4
_VIEWS = (
    "view",
    "transpose",
    "expand",
    "unsqueeze",
    "squeeze",
    "select",
    "slice",
    "alias",
    "detach",
    "permute",
    "split",
)
_BINARY = ("add", "sub", "mul", "div", "rsub", "maximum")


@dataclass(frozen=True)
class Place:
    """A call of one of PyTorch's operations in a run in `dtype`."""

    function: Any
    args: tuple
    kwargs: dict
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return self.function._schema.name.removeprefix("aten::")

    @property
    def counts(self) -> bool:
        """Whether it computes numbers: not a view, nor a tensor of constants."""
        made = self.function._schema.returns
        views = self.name.strip("_").startswith(_VIEWS) or self.name in ("t", "unbind", "detach_", "lift_fresh")
        return not views and len(made) == 1 and self.tensors() != [] and self.wide(self.args[0])

    @staticmethod
    def wide(x: Any) -> bool:
        """A floating tensor of more than 8 bits, or a list of such."""
        x = x[0] if isinstance(x, list | tuple) and x else x
        return isinstance(x, Tensor) and x.is_floating_point() and x.element_size() > 1

    def tensors(self) -> list[int]:
        """Places of the floating tensors among the arguments."""
        return [i for i, x in enumerate(self.args) if isinstance(x, Tensor) and self.wide(x)]

    def scalars(self) -> list[int]:
        """Places of the numbers that the operation computes with."""
        if self.name.strip("_") not in (*_BINARY, "clamp", "pow", "addcmul", "clamp_min", "clamp_max", "where"):
            return []
        return [i for i, x in enumerate(self.args) if type(x) in (int, float)]

    def call(self, args: tuple | None = None, **kwargs: Any) -> Any:
        return self.function(*(self.args if args is None else args), **{**self.kwargs, **kwargs})

    def with_argument(self, index: int, value: Any) -> Any:
        return self.call((*self.args[:index], value, *self.args[index + 1 :]))

    def changed(self, rule: tuple[Callable, Callable]) -> Any:
        """What the mutant gives in place of the operation's result, written in place where the operation does that."""
        if not self.function._schema.is_mutable:
            return rule[1](self)
        target = self.args[0]
        before = target.clone()
        plain = Place(self.function, (before, *self.args[1:]), self.kwargs, self.dtype)
        target.copy_(rule[1](plain))
        return target


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x rounded to a half precision: the run's own, or bfloat16 in a run in float32."""
    return x.to(dtype if dtype in HALVES else torch.bfloat16).to(x.dtype)


def _even(x: Tensor) -> Tensor:
    """x in half precision with its last bit zero: towards zero."""
    return (x.contiguous().view(torch.int16) & ~1).view(x.dtype)


def _stale(x: Tensor, dim: int) -> Tensor:
    x = x.clone()
    x.select(dim, -1).copy_(x.select(dim, -2))
    return x


def _tail(x: Tensor, dim: int) -> Tensor:
    x, n = x.clone(), max(1, x.shape[dim] // 8)
    x.narrow(dim, x.shape[dim] - n, n).zero_()
    return x


def _long(x: Any, dim: int) -> bool:
    return isinstance(x, Tensor) and x.dim() >= -dim and x.shape[dim] > 1 and x.numel() > 0


def _one_wrong(x: Tensor) -> Tensor:
    x = x.clone()
    if x.numel():
        x.view(-1)[x.numel() // 3] += 0.05 * x.float().square().mean().sqrt().to(x.dtype)
    return x


def _pairs(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


_DIMS = (-1, -2, -3)
_ALONG: dict[str, Callable[[Tensor, int], Tensor]] = {
    "shifted by one": lambda x, dim: x.roll(1, dim),
    "last one stale": _stale,
    "tail not computed": _tail,
}
_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "times 1.01": lambda x: x * 1.01,
    "times 1.003": lambda x: (x.double() * 1.003).to(x.dtype),
    "negated": torch.neg,
}


def _operation_rules() -> dict[str, tuple[Callable[[Place], bool], Callable[[Place], Any]]]:
    rules: dict[str, tuple[Callable, Callable]] = {}
    for name, change in _VALUES.items():
        rules[name] = (lambda p: p.counts, lambda p, change=change: change(p.call()))
    for name, change in _ALONG.items():
        for dim in _DIMS:
            fits = lambda p, dim=dim: p.counts and any(_long(p.args[i], dim) for i in p.tensors())  # noqa: E731

            def make(p: Place, change: Callable = change, dim: int = dim) -> Any:
                made = p.call()
                return change(made, dim) if _long(made, dim) else made

            rules[f"{name} along {dim}"] = fits, make
    rules["rounded to half precision"] = (
        lambda p: p.counts and p.args[0].dtype not in HALVES,
        lambda p: rounded(made, p.dtype) if (made := p.call()).dtype not in HALVES else made,
    )
    rules["truncated"] = (
        lambda p: p.name == "_to_copy" and p.kwargs.get("dtype") in HALVES and p.args[0].dtype not in HALVES,
        lambda p: _cut(p.args[0], p.kwargs["dtype"]),
    )
    for index in range(2):
        other = 1 - index
        # One operand alone: a term, or a factor, dropped.
        rules[f"operand {other} dropped"] = (
            lambda p, i=index: p.name.strip("_") in _BINARY and p.counts and i in p.tensors(),
            lambda p, i=index: p.args[i].expand_as(made).to(made.dtype) if (made := p.call()) is not None else None,
        )
    for index in range(3):
        for dim in _DIMS:
            rules[f"operand {index} shifted along {dim}"] = (
                lambda p, i=index, dim=dim: p.counts and i in p.tensors() and _long(p.args[i], dim) and _mixes(p, i),
                lambda p, i=index, dim=dim: p.with_argument(i, p.args[i].roll(1, dim)),
            )
        rules[f"operand {index} of the first sample"] = (
            lambda p, i=index: p.counts and i in p.tensors() and p.args[i].dim() > 1 and len(p.args[i]) > 1,
            lambda p, i=index: p.with_argument(i, p.args[i][:1].expand_as(p.args[i])),
        )
        rules[f"operand {index} rounded to half precision"] = (
            lambda p, i=index: p.counts and i in p.tensors() and p.args[i].dtype not in HALVES and _mixes(p, i),
            lambda p, i=index: p.with_argument(i, rounded(p.args[i], p.dtype)),
        )
        for factor in (0.0, 0.1, 10.0, -1.0, 1.01):
            rules[f"constant {index} times {factor}"] = (
                lambda p, i=index, f=factor: i in p.scalars() and p.args[i] != 0 and (f != 1.01 or p.args[i] > _SMALL),
                lambda p, i=index, f=factor: p.with_argument(i, p.args[i] * f),
            )
    rules["last element not read"] = (_reduces, lambda p: p.call((_without_last(p), *p.args[1:])))
    rules["divided by n - 1"] = (
        lambda p: p.name == "mean" and _reduces(p),
        lambda p: p.call() * (n / (n - 1)) if (n := p.args[0].shape[-1]) > 1 else p.call(),
    )
    rules["erf form of gelu"] = (
        lambda p: p.name in ("gelu", "gelu_backward") and p.kwargs.get("approximate") == "tanh",
        lambda p: p.call(approximate="none"),
    )
    rules["sigmoid form of gelu"] = (
        lambda p: p.name == "gelu",
        lambda p: p.args[0] * torch.sigmoid(1.702 * p.args[0]),
    )
    return rules


def _cut(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in dtype, rounded towards zero."""
    made = x.to(dtype)
    return torch.where(made.double().abs() > x.double().abs(), torch.nextafter(made, torch.zeros_like(made)), made)


def _mixes(place: Place, index: int) -> bool:
    """Whether the operand meets another: one alone is what the rules of results change."""
    return len(place.tensors()) > 1


def _reduces(place: Place) -> bool:
    names = ("sum", "mean", "amax", "logsumexp", "linalg_vector_norm", "var", "var_mean")
    return place.name in names and place.counts and _long(place.args[0], _dim_of(place))


def _dim_of(place: Place) -> int:
    dims = place.args[1] if len(place.args) > 1 else None
    dim = dims[-1] if isinstance(dims, list | tuple) and dims else -1
    return dim - place.args[0].dim() if dim >= 0 else dim


def _without_last(place: Place) -> Tensor:
    x, dim = place.args[0], _dim_of(place)
    return x.narrow(dim, 0, x.shape[dim] - 1)


OPERATION_RULES = _operation_rules()


# Of the bytes of quantised weights.
_CODES: dict[str, Callable[[Tensor], Tensor]] = {
    "codes shifted by one": lambda x: x.roll(1, -1),
    "codes of the row before": lambda x: x.roll(1, 0),
    "lowest bit of codes flipped": lambda x: x ^ 1,
    "highest bit of codes flipped": lambda x: x ^ (-128 if x.dtype == torch.int8 else 128),
    "halves of bytes swapped": lambda x: ((x.view(torch.uint8) >> 4) | (x.view(torch.uint8) << 4)).view(x.dtype),
    "codes stale in the last row": lambda x: torch.cat((x[:-1], x[-2:-1])),
}


def _argument_rules() -> dict[str, tuple[Callable[..., bool], Callable[..., dict[str, Any]]]]:
    def tensor(inputs: dict, name: str) -> bool:
        return Place.wide(inputs[name]) and not isinstance(inputs[name], list)

    rules: dict[str, tuple[Callable, Callable]] = {
        "negated": (lambda i, n, d, o: tensor(i, n), lambda i, n, d: {n: -i[n]}),
        "zero": (lambda i, n, d, o: tensor(i, n), lambda i, n, d: {n: i[n] * 0}),
        "times 1.01": (lambda i, n, d, o: tensor(i, n), lambda i, n, d: {n: i[n] * 1.01}),
        "rounded to half precision": (
            lambda i, n, d, o: tensor(i, n) and i[n].dtype not in HALVES,
            lambda i, n, d: {n: rounded(i[n], d)},
        ),
        "without its gradient": (
            lambda i, n, d, o: n in o.differentiable and i[n] is not None,
            lambda i, n, d: {n: i[n].detach() + 0 * i[n].sum()},
        ),
        "None": (
            lambda i, n, d, o: (
                o.kind == "function"
                and i[n] is not None
                and "None" in str(inspect.signature(o.reference).parameters[n].annotation)
                and not n.startswith("lora")
            ),
            lambda i, n, d: {n: None},
        ),
        "the other way": (lambda i, n, d, o: type(i[n]) is bool, lambda i, n, d: {n: not i[n]}),
        "swapped": (
            lambda i, n, d, o: _partner(i, n) is not None,
            lambda i, n, d: {n: i[p], p: i[n]} if (p := _partner(i, n)) else {},
        ),
    }
    for name, change in _ALONG.items():
        for dim in _DIMS:
            rules[f"{name} along {dim}"] = (
                lambda i, n, d, o, dim=dim: tensor(i, n) and _long(i[n], dim),
                lambda i, n, d, change=change, dim=dim: {n: change(i[n], dim) if _long(i[n], dim) else i[n]},
            )
    rules["pairs swapped"] = (
        lambda i, n, d, o: tensor(i, n) and i[n].dim() > 0 and i[n].numel() > 0 and i[n].shape[-1] % 2 == 0,
        lambda i, n, d: {n: _pairs(i[n]) if i[n].shape[-1] % 2 == 0 else i[n]},
    )
    for name, change in _CODES.items():
        rules[name] = (
            lambda i, n, d, o: isinstance(i[n], Tensor) and i[n].dtype in (torch.uint8, torch.int8),
            lambda i, n, d, change=change: {n: change(i[n])},
        )
    for factor in (0.0, 0.1, 10.0, 1e4, -1.0, 1.01):
        rules[f"{factor} times as large"] = (
            lambda i, n, d, o, f=factor: type(i[n]) is float and i[n] != 0 and (f != 1.01 or i[n] > _SMALL),
            lambda i, n, d, f=factor: {n: i[n] * f},
        )
        rules[f"options {factor} times as large"] = (
            lambda i, n, d, o: n == "options",
            lambda i, n, d, f=factor: {n: i[n] | {"eps": i[n]["eps"] * f}},
        )
    for option, value in (("lr", 0.0101), ("betas", (0.91, 0.98)), ("betas", (0.9, 0.981)), ("weight_decay", 0.0)):
        rules[f"{option} {value}"] = (
            lambda i, n, d, o: n == "options",
            lambda i, n, d, k=option, v=value: {n: i[n] | {k: v}},
        )
    return rules


def _partner(inputs: dict[str, Any], name: str) -> str | None:
    """The next tensor of the same shape and dtype."""
    x, names = inputs[name], list(inputs)
    if not Place.wide(x) or isinstance(x, list):
        return None
    rest = (n for n in names[names.index(name) + 1 :] if isinstance(inputs[n], Tensor))
    return next((n for n in rest if inputs[n].shape == x.shape and inputs[n].dtype == x.dtype), None)


ARGUMENT_RULES = _argument_rules()


def _result_rules() -> dict[str, tuple[Callable[[Any], bool], Callable[[Tensor], Tensor]]]:
    fits = lambda x: Place.wide(x) and x.numel() > 0 and bool(x.isfinite().all())  # noqa: E731
    rules: dict[str, tuple[Callable, Callable]] = {name: (fits, change) for name, change in _VALUES.items()}
    rules["one element wrong"] = fits, _one_wrong
    rules["last bit cleared"] = lambda x: fits(x) and x.dtype in HALVES, _even
    rules["rounded to half precision"] = (
        lambda x: fits(x) and x.dtype == torch.float32,
        lambda x: x.bfloat16().to(x.dtype),
    )
    rules["offset"] = fits, lambda x: (x.double() + 0.003 * x.double().square().mean().sqrt()).to(x.dtype)
    rules["1% noise"] = (
        fits,
        lambda x: (x.double() * (1 + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))).to(
            x.dtype
        ),
    )
    for name, change in _ALONG.items():
        for dim in _DIMS:
            rules[f"{name} along {dim}"] = (
                lambda x, dim=dim: fits(x) and _long(x, dim),
                lambda x, change=change, dim=dim: change(x, dim) if _long(x, dim) else x,
            )
    return rules


RESULT_RULES = _result_rules()
