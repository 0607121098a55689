"""Low-rank approximations: of a difference of weights, and of several updates together."""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import torch
from torch import Tensor

from mova_engine.adapters.form import LowRank

# Up to this many rows or columns the whole decomposition is taken; above, a randomised one (Halko et al., 2011).
_WHOLE = 512
# Directions beside those asked for, and rounds of power iteration, of the randomised one.
_MORE, _ROUNDS = 16, 4


@torch.no_grad()
def approximated(difference: Tensor, rank: int, seed: int = 0) -> LowRank:
    """The update of at most `rank` nearest to a difference [out, in], float32 (Eckart and Young, 1936): exact up to 512
    rows or columns, by random projection, drawn from `seed`, above. alpha is the rank.
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
    """(the update of at most `rank` nearest to that of a pair, the norm of what is lost), in float32. The product is
    not made: the decomposition of its factors' triangles has its singular values.
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
    """The sum of updates with strengths as one pair, their ranks side by side. Nothing is lost but what float32 cannot
    hold of B; alpha is the rank.
    """
    a = torch.cat([pair.a.float() for pair, _ in pairs])
    b = torch.cat([pair.b.float() * (pair.scale * strength) for pair, strength in pairs], 1)
    return LowRank(a, b, float(len(a)))


def _split(u: Tensor, s: Tensor, vh: Tensor) -> LowRank:
    """Both halves get the root of the singular values, as trained adapters have halves of one size."""
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
