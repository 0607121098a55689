"""Stores the sum of weights and a small update in a narrow dtype without losing the update on average.

Rounding to the nearest value would lose every update below half the spacing of the weight's values, and so could lose a
whole adapter. Stochastic rounding chooses one of the two neighbours at random, with the probabilities whose mean is the
value.
"""

# torch does not say of all its functions what they take.
# pyright: reportUnknownMemberType=false

import zlib

import torch
from torch import Tensor

# Bits that float32 has below the last one of a narrower float.
_CUT = {torch.bfloat16: 16, torch.float16: 13}


def rounded(x: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """x float32 in `dtype`; for bfloat16 and float16 by stochastic rounding, whose draws depend on `name` alone.

    Adding a uniform number to the bits that go and cutting them off carries into those that stay with the probability
    that the cut part is of a step. Values below float16's normal range are then rounded to the nearest.
    """
    if dtype not in _CUT:
        return x.to(dtype)
    cut = _CUT[dtype]
    source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    draws = torch.randint(1 << cut, x.shape, generator=source, dtype=torch.int32).to(x.device)
    bits = (x.contiguous().view(torch.int32) + draws) & -(1 << cut)
    # A value that is stored already keeps its bits.
    return torch.where(x.to(dtype).float() == x, x, bits.view(torch.float32)).to(dtype)
