"""Low-rank approximations: of a difference of weights, and of several updates together."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import torch
from torch import Tensor

from mova_engine.adapters.form import LowRank

# Up to this many rows or columns the exact decomposition is used; above, a randomised one (Halko et al., 2011).
_WHOLE = 512
# Extra directions, and power iterations, of the randomised decomposition.
_MORE, _ROUNDS = 16, 4


@torch.no_grad()
def approximated(difference: Tensor, rank: int, seed: int = 0) -> LowRank:
    """The best update of at most `rank` for a difference [out, in], float32. Exact (Eckart and Young, 1936) for up to
    512 rows or columns; above, by random projections drawn from `seed`. alpha is the rank.
    """
    flat = difference.flatten(1).float()
    rank = min(rank, *flat.shape)
    if min(flat.shape) <= _WHOLE:
        u, s, vh = torch.linalg.svd(flat, full_matrices=False)
    else:
        u, s, vh = _randomised(flat, min(rank + _MORE, *flat.shape), seed)
    pair = _split(u[:, :rank], s[:rank], vh[:rank])
    kernel = difference.shape[2:]
    return LowRank(
        pair.a.reshape(rank, difference.shape[1], *kernel), pair.b.reshape(-1, rank, *(1,) * len(kernel)), pair.alpha
    )


@torch.no_grad()
def truncated(pair: LowRank, rank: int) -> tuple[LowRank, float]:
    """(the best update of at most `rank` for that of a pair, the norm of the rest), in float32. B A is not computed:
    the singular values are those of the product of the factors' R matrices (QR).
    """
    if pair.rank <= rank:
        return pair, 0.0
    kernel = pair.a.shape[2:]
    a, b = pair.a.flatten(1).double(), pair.b.flatten(1).double() * pair.scale
    qb, rb = torch.linalg.qr(b)
    qa, ra = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    made = _split((qb @ u[:, :rank]).float(), s[:rank].float(), (vh[:rank] @ qa.T).float())
    a, b = made.a.reshape(made.rank, pair.a.shape[1], *kernel), made.b.reshape(-1, made.rank, *(1,) * len(kernel))
    return LowRank(a, b, made.alpha), float(s[rank:].norm())


@torch.no_grad()
def together(pairs: Sequence[tuple[LowRank, float]]) -> LowRank:
    """The weighted sum of updates as one pair, concatenated along the rank. Exact up to float32 rounding of B; alpha is
    the rank.
    """
    a = torch.cat([pair.a.float() for pair, _ in pairs])
    b = torch.cat([pair.b.float() * (pair.scale * strength) for pair, strength in pairs], 1)
    return LowRank(a, b, float(len(a)))


def _split(u: Tensor, s: Tensor, vh: Tensor) -> LowRank:
    """A and B from a singular value decomposition, each with the square roots of the singular values, so that both have
    similar norms.
    """
    root = s.sqrt()
    return LowRank((root[:, None] * vh).contiguous(), (u * root).contiguous(), float(len(s)))


def _randomised(x: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(x @ torch.randn(x.shape[1], size, generator=source)).Q
    for _ in range(_ROUNDS):
        q = torch.linalg.qr(x.T @ q).Q
        q = torch.linalg.qr(x @ q).Q
    u, s, vh = torch.linalg.svd(q.T @ x, full_matrices=False)
    return q @ u, s, vh
