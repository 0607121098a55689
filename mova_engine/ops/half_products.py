"""Matrix products in half precision, made in float32 on x86 CPUs that have no instructions for them.

torch multiplies bfloat16 there in loops of its own: with AVX2 alone a layer's forward takes 4 times as long as in
float32, and the gradient of its input, in which neither matrix is transposed, 100 times. In float32, of copies that
live as long as the product, all take about what float32 does. The result is rounded once, as by other devices.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HALVES = (torch.bfloat16, torch.float16)


def _slow_here() -> bool:
    """Whether torch uses no wider vectors than those of AVX2 on this CPU: oneDNN multiplies halves from AVX-512 on."""
    of_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return of_x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX", "AVX", "AVX2")


SLOW_HERE = _slow_here()


def in_float32(x: Tensor) -> bool:
    """Whether products of this matrix are made so."""
    return SLOW_HERE and x.is_cpu and x.dtype in _HALVES


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a b`. a [n, k], b [k, m], of one dtype -> [n, m]."""
    return (a.float() @ b.float()).to(a.dtype) if in_float32(a) else a @ b


def add_product(out: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """`out += scale a b` in place. out [n, m], a [n, k], b [k, m]; outside of autograd."""
    if in_float32(a):
        out.copy_(torch.addmm(out.float(), a.float(), b.float(), alpha=scale))
    else:
        torch.addmm(out, a, b, alpha=scale, out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b`. x [..., i], weight [o, i], bias [o] -> [..., o]."""
    if not in_float32(x):
        return F.linear(x, weight, bias)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


class PlainLinear(nn.Linear):
    """nn.Linear by these products: of layers that carry no adapter and are never quantised."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
