"""Every form in which MOVA calls the operators that have a Triton kernel, and what they launch, found without a device:
what the compile checks and the tuner loop over.
"""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mova_kernels.triton_rows import KernelLaunch


DTYPES = ("bfloat16", "float32", "float16")
WIDTHS = (1536, 5120)
HEAD_DIM = 128
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float8_e4m3fn: "*fp8e4nv",
}  # fmt: skip


class Specialisation(NamedTuple):
    """What Triton compiles a launch for: types by argument, values fixed at compile time, multiples of 16."""

    signature: dict[str, str]
    constants: dict[str, Any]
    divisible: tuple[str, ...]


def calls(
    d: int, dtype: torch.dtype, b: int = 2, s: int = 160, device: torch.device | str = "cpu"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every form in which the model calls the operators: (name, arguments) for b samples of s rows of d zeros."""

    def zeros(*shape: int, like: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        return torch.zeros(shape, dtype=like, device=device, requires_grad=grad)

    def rows(n: int) -> list[Tensor]:
        return [zeros(b, s, d, like=dtype, grad=True) for _ in range(n)]

    def modulation(*names: str) -> dict[str, Tensor]:
        return {name: zeros(b, d, grad=True) for name in names}

    def affine(*names: str) -> dict[str, Tensor]:
        return {name: zeros(d, like=dtype, grad=True) for name in names}

    (x, y), eps = rows(2), 1e-6
    angles = zeros(s, HEAD_DIM // 2)
    yield "rms_norm", {"x": x, **affine("weight"), "eps": eps}
    for interleaved in (True, False):
        tables = {"cos": angles, "sin": angles, "interleaved": interleaved}
        yield "rms_norm_rope", {"x": x, **affine("weight"), **tables, "eps": eps}
    yield "norm_modulate", {"x": x, **modulation("shift", "scale"), "eps": eps}
    yield "layer_norm", {"x": x, **affine("weight", "bias"), "eps": eps}
    for gate in (modulation("gate"), {"gate": None}):
        residual = {"x": x, "y": y, **gate}
        yield "gate_residual", residual
        yield "gate_residual_norm", {**residual, **affine("weight", "bias"), "eps": eps}
        yield "gate_residual_norm_modulate", {**residual, **modulation("shift", "scale"), "eps": eps}
    yield "bias_gelu", {"x": x, **affine("bias")}
    for factor in (None, zeros(d)):
        yield "quantize_rows", {"x": x.detach(), "factor": factor}
    h = d // HEAD_DIM
    yield "merge_lse", {"outs": zeros(2, b, s, h, HEAD_DIM, like=dtype), "lses": zeros(2, b, h, s)}


def operators() -> tuple[str, ...]:
    """The operators that have a Triton kernel."""
    return tuple(dict.fromkeys(name for name, _ in calls(HEAD_DIM, torch.float32)))


def forward(name: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """The results of an operator's Triton implementation."""
    outputs = getattr(importlib.import_module(f"mova_kernels.{name}.triton"), name)(**arguments)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def backward(outputs: tuple[Tensor, ...], arguments: dict[str, Any], *grads: Tensor) -> tuple[Tensor, ...]:
    """Gradients of all arguments that want one, given those of the outputs that have one (none given: zeros).

    The outputs may be asked again.
    """
    outputs = tuple(out for out in outputs if out.requires_grad)
    leaves = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    grads = grads or tuple(map(torch.zeros_like, outputs))
    return torch.autograd.grad(outputs, leaves, grads, retain_graph=True) if outputs else ()


def launches(name: str, arguments: dict[str, Any]) -> "list[KernelLaunch]":
    """What one call of an operator launches, forward and backward."""
    from mova_kernels.triton_rows import recording

    with recording() as launched:
        backward(forward(name, arguments), arguments)
    return launched


def specialise(launch: "KernelLaunch") -> Specialisation:
    """The launch specialised as Triton's own launcher does: by types, None, the number 1 and divisibility by 16."""
    signature, constants, divisible = {}, {}, []
    for name, value in zip(launch.kernel.arg_names, launch.args, strict=False):
        if value is None or (type(value) is int and value == 1):
            constants[name] = value
            continue
        if isinstance(value, Tensor):
            signature[name] = _TYPES[value.dtype]
        elif isinstance(value, int):
            signature[name] = "i32" if value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        # torch's allocations begin at multiples of 16 bytes and more.
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divisible.append(name)
    return Specialisation(signature, {**constants, **launch.constants}, tuple(divisible))


def needs_fp8(launch: "KernelLaunch") -> bool:
    """Whether the kernel reads or writes 8-bit floating point, which not every target has."""
    return any(isinstance(x, Tensor) and x.dtype == torch.float8_e4m3fn for x in launch.args)


def variants(
    dtype: torch.dtype, widths: tuple[int, ...] = WIDTHS, arch: str | None = None
) -> "dict[str, KernelLaunch]":
    """Distinct specialisations at the given widths, by a readable name: operator, kernel, and what of it is fixed.

    arch: whose measured tiles are used ("sm_90"), where there are some; None: the built-in ones.
    """
    from mova_kernels.triton_tiles import compiling_for

    named: dict[str, Any] = {}
    seen = set()
    with compiling_for(arch):
        found = [
            (name, one) for d in widths for name, arguments in calls(d, dtype) for one in launches(name, arguments)
        ]
    for operator, launch in found:
        key = (operator, launch.kernel.__name__, repr(specialise(launch)))
        if key in seen:
            continue
        seen.add(key)
        fixed = [f"{k.lower()}={v}" for k, v in launch.constants.items() if k == "INTERLEAVED"]
        absent = [n for n, value in zip(launch.kernel.arg_names, launch.args, strict=False) if value is None]
        direction = "backward" if "_bwd" in launch.kernel.__name__ else "forward"
        name = " ".join([operator, direction, *fixed, *([f"without {','.join(absent)}"] if absent else [])])
        named[name if name not in named else f"{name} ({len(named)})"] = launch
    return named
