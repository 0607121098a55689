"""Newton-Schulz iteration: the orthogonal factor of matrices by matrix products alone.

Of a matrix U S V^T it makes U p(S) V^T, in which p brings all singular values near 1. Coefficients by Keller Jordan et
al., "Muon: an optimizer for hidden layers in neural networks", 2024: chosen so that small singular values grow fast,
by 3.4445 a step; after five steps those from 0.01 of the norm on lie between 0.68 and 1.2.
"""

from functools import partial

import torch
from torch import Tensor

from mova_engine.errors import MovaError
from mova_engine.ops import requirements
from mova_engine.ops.reference import up

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Of the norm by which a matrix is divided: a matrix of zeros stays one.
_EPS = 1e-7
# Values of matrices that are multiplied in one call. On a CPU so few that their products stay in its caches.
_AT_ONCE, _IN_CACHE = 1 << 25, 1 << 16


def _short_first(x: Tensor) -> Tensor:
    """x or, where its matrices have more rows than columns, their transposes: products of the short side are smaller,
    and p(X^T) = p(X)^T.
    """
    return x.transpose(1, 2) if x.shape[1] > x.shape[2] else x


def _as_given(y: Tensor, x: Tensor) -> Tensor:
    """What `_short_first` turned, turned back."""
    return y.transpose(1, 2) if x.shape[1] > x.shape[2] else y


def newton_schulz_reference(x: Tensor, *, steps: int) -> Tensor:
    """`y = x / (|x| + 1e-7)`, then `steps` times `y <- a y + (b g + c g^2) y` with `g = y y^T`, for each matrix of
    x [n, r, c] (Frobenius norm). Returns x's shape and dtype; computed in float32 at least.
    """
    a, b, c = COEFFICIENTS
    y = _short_first(up(x))
    y = y / (y.square().sum((1, 2), keepdim=True).sqrt() + _EPS)
    for _ in range(steps):
        g = y @ y.transpose(1, 2)
        y = a * y + (b * g + c * (g @ g)) @ y
    return _as_given(y, x).to(x.dtype)


def newton_schulz_rounded(x: Tensor, *, steps: int, apart: bool) -> Tensor:
    """`newton_schulz_reference` with every product rounded to x's dtype, which the next one takes. apart: as by kernels
    that only multiply, before they are added too.
    """
    a, b, c = COEFFICIENTS

    def rounded(y: Tensor) -> Tensor:
        return up(y.to(x.dtype))

    def product(y: Tensor, z: Tensor) -> Tensor:
        return rounded(y @ z) if apart else y @ z

    y = _short_first(up(x))
    y = rounded(y / (y.square().sum((1, 2), keepdim=True).sqrt() + _EPS))
    for _ in range(steps):
        g = rounded(y @ y.transpose(1, 2))
        y = rounded(a * y + product(rounded(b * g + c * product(g, g)), y))
    return _as_given(y, x).to(x.dtype)


NEWTON_SCHULZ_ROUNDED = tuple(partial(newton_schulz_rounded, apart=apart) for apart in (False, True))


def at_once(shape: torch.Size | tuple[int, ...], device: torch.device) -> int:
    """How many matrices of a shape are multiplied together on a device; at least 1."""
    most = _IN_CACHE if device.type == "cpu" else _AT_ONCE
    return max(1, most // max(1, shape[-2] * shape[-1]))


def newton_schulz_batched(x: Tensor, *, steps: int) -> Tensor:
    """`newton_schulz` in x's dtype, with products over several matrices at once, the shorter side first."""
    if x.dim() != 3:
        raise MovaError(f"newton_schulz: x must be matrices [n, r, c], got {list(x.shape)}")
    requirements.same_dtype("newton_schulz", (torch.float32, torch.bfloat16), x=x)
    if not x.numel():
        return torch.empty_like(x)
    made = [_iterated(part, steps) for part in _short_first(x).split(at_once(x.shape, x.device))]
    return _as_given(made[0] if len(made) == 1 else torch.cat(made), x)


def _iterated(x: Tensor, steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    # The norm in float32: rounded to half precision it would be wrong for all of a matrix alike.
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=up(x[:0]).dtype)
    # In order: fast kernels do not write results that lie transposed.
    y = (x / (norm + _EPS)).to(x.dtype).contiguous()
    g = x.new_empty(len(x), x.shape[1], x.shape[1])
    p, z = torch.empty_like(g), torch.empty_like(y)
    for _ in range(steps):
        torch.bmm(y, y.transpose(1, 2), out=g)
        torch.baddbmm(g, g, g, beta=b, alpha=c, out=p)
        torch.baddbmm(y, p, y, beta=a, out=z)
        y, z = z, y
    return y
