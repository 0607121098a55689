"""Whether this CPU's matrix products give a row the same bits whatever other rows there are."""

import functools

import torch


@functools.cache
def rows_are_alone() -> bool:
    """Whether a product of five rows has the bits that these have among sixteen. Not with SSE4.2, where oneMKL adds up
    fewer than eight rows in another order: what is computed with other rows beside it is the same but for rounding.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 24, generator=generator) for n in (16, 96))
    return torch.equal(torch.nn.functional.linear(x[:5], weight), torch.nn.functional.linear(x, weight)[:5])
