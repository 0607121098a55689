"""Vector-Jacobian products inside a kernel, for backward operators whose formula is the derivative of the forward."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# As they are outside every kernel: with autograd.
_INCLUDED = torch._C._dispatch_tls_local_include_set()
_EXCLUDED = torch._C._dispatch_tls_local_exclude_set()


@contextmanager
def autograd():
    """Within a kernel the dispatcher skips autograd; here it does not."""
    with torch._C._ForceDispatchKeyGuard(_INCLUDED, _EXCLUDED), torch.enable_grad():
        yield


def vjp(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor, wanted=None) -> tuple:
    """Gradients of `sum(grad * function(*inputs))`; None for inputs that are not wanted."""
    wanted = wanted or [True] * len(inputs)
    with autograd():
        leaves = [x.detach().requires_grad_(bool(w)) for x, w in zip(inputs, wanted, strict=True)]
        grads = iter(torch.autograd.grad(function(*leaves), [x for x in leaves if x.requires_grad], grad))
    return tuple(next(grads) if x.requires_grad else None for x in leaves)


def wide(x: Tensor) -> Tensor:
    """x in the precision in which the device's kernels compute: half types become float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
