"""Operators without their implementations: shapes, dtypes and memory of what they would return, keep and use.

For runs on tensors without data (`FakeTensorMode`) that assume a machine which is not here. `fake_table` gives, for the
implementations that such a machine would bind, a table of callables of the operators' own signatures:

* what is made of PyTorch's own operations (`lora_linear`, the references) runs as it is, on tensors without data;
* what calls torch_npu or MindIE-SD runs as it is too, over their operators' shapes (`mova_kernels.npu.shapes`);
* a fused kernel (Triton, CUDA C++, the CPU's, apex, flash attention) is a `FakeForm`: results, what is kept for the
  backward, and the memory that it takes and gives back within itself.

An implementation that is none of them is a MovaError: nothing may be left out of the count.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import fp8_trained_impl
from mova_engine.ops.declarations import REFERENCE, Choice, Operator, resolve
from mova_engine.ops.fp8_impl import checked
from mova_engine.ops.quantised_impl import nf4_checked
from mova_engine.ops.registry import OpTable, table_of
from mova_engine.ops.row_chunks import row_chunks
from mova_engine.ops.table import OPERATORS

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class FakeCall:
    """A call of a fused implementation. backward: its gradient's. shapes, widths: of its tensors by argument, and the
    bytes of their elements. gated: it has a gate, or its operator has none.
    """

    operator: str
    implementation: str
    backward: bool
    shapes: dict[str, tuple[int, ...]]
    widths: dict[str, int]
    gated: bool

    @classmethod
    def of(cls, operator: str, implementation: str, arguments: Arguments) -> "FakeCall":
        """The forward's call, from its arguments."""
        tensors = {name: x for name, x in arguments.items() if isinstance(x, Tensor)}
        return cls(
            operator,
            implementation,
            False,
            {name: tuple(x.shape) for name, x in tensors.items()},
            {name: x.element_size() for name, x in tensors.items()},
            arguments.get("gate", True) is not None,
        )


# Is told of the calls of fused implementations.
Watch = Callable[[FakeCall], None]
# Bytes of scratch memory of a call, from the arguments of its forward.
Workspace = Callable[[Arguments], int]


def _nothing(arguments: Arguments) -> int:
    return 0


def _unwatched(call: FakeCall) -> None:
    pass


def _none(arguments: Arguments) -> tuple[Tensor, ...]:
    return ()


@dataclass(frozen=True)
class FakeForm:
    """What a fused implementation of an operator returns and keeps.

    outputs: empty results from the arguments. kept: arguments that it keeps for the backward. own: what it keeps of its
    own, empty. keeps_outputs: numbers of the results that it keeps.
    """

    outputs: Callable[[Arguments], tuple[Tensor, ...]]
    kept: tuple[str, ...] = ()
    own: Callable[[Arguments], tuple[Tensor, ...]] = _none
    keeps_outputs: tuple[int, ...] = ()


def _like(*names: str) -> Callable[[Arguments], tuple[Tensor, ...]]:
    """Contiguous tensors of the shapes and dtypes of these arguments."""
    return lambda arguments: tuple(_empty(arguments[name]) for name in names)


def _empty(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return x.new_empty(shape or x.shape, dtype=dtype)


def _statistics(count: int) -> Callable[[Arguments], tuple[Tensor, ...]]:
    """float32 values of each row of x [b, s, d]."""
    return lambda a: tuple(a["x"].new_empty(a["x"].shape[:-1], dtype=torch.float32) for _ in range(count))


def _product(arguments: Arguments) -> tuple[Tensor, ...]:
    x, weight = arguments["x"], arguments["weight"]
    return (_empty(x, *x.shape[:-1], len(weight)),)


def attention_outputs(arguments: Arguments) -> tuple[Tensor, Tensor]:
    """Output [b, s, h, e] and log-sum-exp [b, h, s] float32 of q [b, s, h, e]."""
    return _empty(arguments["q"]), *_log_sum_exp(arguments)


def _log_sum_exp(arguments: Arguments) -> tuple[Tensor]:
    q = arguments["q"]
    b, s, h, _ = q.shape
    return (q.new_empty((b, h, s), dtype=torch.float32),)


def _merged(arguments: Arguments) -> tuple[Tensor, Tensor]:
    return arguments["outs"].new_empty(arguments["outs"].shape[1:]), _empty(arguments["lses"][0])


def _quantized(arguments: Arguments) -> tuple[Tensor, Tensor]:
    x = arguments["x"]
    values = _empty(x, dtype=torch.float8_e4m3fn)
    return values, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


_NORM = FakeForm(_like("x"), ("x", "weight"), _statistics(1))
_RESIDUAL = ("y", "gate")
_FORMS: dict[str, FakeForm] = {
    "rms_norm": _NORM,
    "rms_norm_rope": FakeForm(_like("x"), ("x", "weight", "cos", "sin"), _statistics(1)),
    "norm_modulate": FakeForm(_like("x"), ("x", "shift", "scale"), _statistics(2)),
    "layer_norm": FakeForm(_like("x"), ("x", "weight", "bias"), _statistics(2)),
    # Without a gate nothing of y is kept.
    "gate_residual": FakeForm(_like("x"), _RESIDUAL),
    "gate_residual_norm": FakeForm(_like("x", "x"), (*_RESIDUAL, "weight", "bias"), _statistics(2), (0,)),
    "gate_residual_norm_modulate": FakeForm(_like("x", "x"), (*_RESIDUAL, "shift", "scale"), _statistics(2), (0,)),
    "bias_gelu": FakeForm(_like("x"), ("x", "bias")),
    # The product is kept beside what it was made of.
    "linear_gelu": FakeForm(_product, ("x", "weight", "bias"), _product),
    "quantize_rows": FakeForm(_quantized),
    "attention": FakeForm(_like("q"), ("q", "k", "v"), _log_sum_exp, (0,)),
    "attention_lse": FakeForm(attention_outputs),
    "attention_backward": FakeForm(_like("q", "k", "v")),
    "merge_lse": FakeForm(_merged),
}


def _bytes_of(*names: str) -> Workspace:
    """A float32 tensor for each of these arguments."""
    return lambda arguments: sum(4 * arguments[name].numel() for name in names)


_FLASH = ("flash-attn-2", "flash-attn-3", "flash-attn-4")
_KERNELS = ("flash-cuda", "cudnn", "efficient", *_FLASH)
_SDPA = ("sdpa-cudnn", "sdpa-flash-cuda", "sdpa-efficient", *_FLASH)
# What each kernel of attention takes (others may hold whole matrices of scores), and of other operators where their
# scratch memory is of the size of activations: (forward, backward).
_WORKSPACE: dict[tuple[str, str], tuple[Workspace, Workspace]] = {
    # torch's CPU kernel is given float32, of which narrower inputs are copied; its results come in float32 too.
    ("attention_lse", "flash"): (_bytes_of("q", "k", "v", "q"), _nothing),
    ("attention_backward", "flash"): (_bytes_of("dout", "q", "k", "v", "out", "q", "k", "v"), _nothing),
    # flash attention accumulates dq in float32 and gives it back rounded.
    **{("attention_backward", name): (_bytes_of("q"), _nothing) for name in _KERNELS},
    **{("attention", name): (_nothing, _bytes_of("q")) for name in ("sdpa", *_SDPA)},
    **{("attention_lse", name): (_nothing, _nothing) for name in _KERNELS},
    # Within themselves these are not known to take more.
    ("attention", "sdpa-flash"): (_nothing, _nothing),
}
# Implementations of a `FakeForm`, by name, beside those of attention that `_WORKSPACE` names and torch_npu's: on
# tensors without data PyTorch's own choice among kernels is that of no device.
_FUSED = ("native", "triton", "cuda-cpp", "apex", "epilogue", "onednn")
_ATTENTION = ("attention", "attention_lse", "attention_backward")
# Implementations of `linear_gelu`, without gradients, that write GELU's result where the product would be.
_IN_THE_PRODUCT = ("epilogue", "onednn")
# Adapters that run over operators without data.
_VENDOR = "mova_kernels.npu"
_OF_VENDOR = (_VENDOR, "mova_engine.ops.quantised_impl:int8_npu")
# Modules whose implementations are made of PyTorch's own operations.
_OF_TORCH = tuple(
    f"mova_engine.ops.{name}"
    for name in (
        *("torch_impl", "linear_impl", "fp8_impl", "fp8_trained_impl", "quantised_impl"),
        *("optimizer_impl", "adamw_8bit", "newton_schulz"),
    )
)


class _Faked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        form: FakeForm,
        workspace: tuple[Workspace, Workspace],
        call: tuple[str, str, Watch],
        names: tuple[str, ...],
        *values: Any,
    ) -> Any:
        arguments = dict(zip(names, values, strict=True))
        operator, implementation, watch = call
        made = FakeCall.of(operator, implementation, arguments)
        watch(made)
        outputs, own = form.outputs(arguments), form.own(arguments)
        _take(workspace[0](arguments), outputs[0])
        kept = form.kept
        if "gate" in arguments and arguments["gate"] is None:
            # Without a gate the gradients of x and y are one, and y is not looked at.
            kept = tuple(name for name in kept if name not in _RESIDUAL)
        ctx.save_for_backward(*(arguments[name] for name in kept), *own, *(outputs[i] for i in form.keeps_outputs))
        # What is not kept is known to the backward by its shape alone.
        ctx.like = [(x.shape, x.dtype, x.device) if isinstance(x, Tensor) else None for x in values]
        ctx.workspace = workspace[1](arguments)
        ctx.differentiated = partial(watch, replace(made, backward=True))
        first, *others = outputs
        return outputs if others else first

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.saved_tensors  # noqa: B018 asked for, so that checkpointing computes them again
        _take(ctx.workspace, grads[0])
        ctx.differentiated()
        found = []
        for like, wanted in zip(ctx.like, ctx.needs_input_grad[4:], strict=True):
            found.append(torch.empty(like[0], dtype=like[1], device=like[2]) if wanted else None)
        return None, None, None, None, *found


# Bytes that `dequantise_nf4` has on the way for each weight of a chunk of rows: codes in 32 bits, a look-up, a product.
_NF4_CHUNK = 2 + 4 + 4


def _dequantised_nf4(chunk: int, weight: Tensor, *stored: Tensor | torch.dtype | None) -> Tensor:
    """A weight [o, i] as `dequantise_nf4` gives it; in the work of three operations, not of as many as rows."""
    *_, dtype = stored
    assert isinstance(dtype, torch.dtype), "the last argument of a function that dequantises"
    o, i = len(weight), 2 * weight.shape[1]
    out = torch.empty(o, i, dtype=dtype, device=weight.device)
    _take(chunk * i * max((rows.stop - rows.start for rows in row_chunks(o, i)), default=0), out)
    return out


def _take(size: int, beside: Tensor) -> None:
    """Take memory on the device of `beside` and give it back."""
    if size:
        torch.empty(size, dtype=torch.uint8, device=beside.device)


def _fused(operator: Operator, implementation: str, watch: Watch) -> Callable[..., Any]:
    """An operator by its form, with the operator's own signature."""
    form = _FORMS[operator.name]
    if operator.name == "linear_gelu" and implementation in _IN_THE_PRODUCT:
        form = replace(form, kept=(), own=_none)
    workspace = _WORKSPACE.get((operator.name, implementation), (_nothing, _nothing))
    signature = inspect.signature(operator.reference)
    names, call = tuple(signature.parameters), (operator.name, implementation, watch)

    def fake(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return _Faked.apply(form, workspace, call, names, *bound.arguments.values())

    return fake


def fake_function(operator: Operator, implementation: str, watch: Watch = _unwatched) -> Callable[..., Any]:
    """A callable with the operator's signature for tensors without data, as `implementation` of it on its own device.
    watch: told of its calls, where it is one kernel of which the dispatcher sees nothing.

    Needs neither device nor package. Raises MovaError for an implementation of which nothing is declared.
    """
    if implementation == REFERENCE:
        return operator.reference
    entry = next((i for i in operator.implementations if i.name == implementation), None)
    if entry is None:
        known = ", ".join(operator.choices())
        raise MovaError(f"operator {operator.name} has no implementation '{implementation}'. Known: {known}")
    if entry.target.startswith(_OF_VENDOR) and operator.kind == "function" and operator.name not in _ATTENTION:
        resolve(f"{_VENDOR}.shapes:define")()
        return resolve(entry.target)
    if (operator.name, implementation) == ("fp8_linear", "scaled-mm-triton"):
        return partial(checked, _fused(OPERATORS["quantize_rows"], "triton", watch))
    if (operator.name, implementation) == ("fp8_trained_linear", "scaled-mm-triton"):
        product = fp8_trained_impl.scaled(_fused(OPERATORS["quantize_rows"], "triton", watch))
        return partial(fp8_trained_impl.checked, product)
    if operator.name == "nf4_linear" and implementation in ("native", "dequantise"):
        chunk = _NF4_CHUNK if implementation == "dequantise" else 0
        return partial(nf4_checked, partial(_dequantised_nf4, chunk))
    known = (operator.name, implementation) in _WORKSPACE or entry.target.startswith(_VENDOR)
    if operator.name in _FORMS and (implementation in _FUSED or known):
        return _fused(operator, implementation, watch)
    if operator.kind != "function" or entry.target.partition(":")[0] in _OF_TORCH:
        return resolve(entry.target)
    raise MovaError(
        f"operator {operator.name}: of implementation '{implementation}' nothing is declared for tensors without data; "
        "add a FakeForm to mova_engine/ops/fakes.py"
    )


def fake_table(
    device: str,
    choices: Iterable[Choice],
    operators: Mapping[str, Operator] = OPERATORS,
    watch: Watch = _unwatched,
) -> OpTable:
    """A table for tensors without data on `device`, by what an assumed machine would bind (`OpTable.choices`).
    watch: as of `fake_function`.
    """
    choices = tuple(choices)
    functions = {each.operator: fake_function(operators[each.operator], each.implementation, watch) for each in choices}
    return table_of(device, functions, choices)
