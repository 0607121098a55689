"""Selective activation checkpointing: operators whose outputs are saved, so that a recomputed region reuses them.

A region run under `SavedOps.contexts` (the `context_fn` of torch.utils.checkpoint) saves the outputs that operators
pass through `save_or_reuse` under a name that the policy lists. When the backward pass recomputes the region,
`save_or_reuse` returns them in the same order instead of computing. Operators know neither region nor policy.

    "attention"   output and log-sum-exp of an attention
    "exchange"    q, k, v after the exchange between the ranks of a context-parallel group
    "return"      an attention's output after the exchange back
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from mova_engine.errors import MovaError

# What each checkpointing setting keeps of a recomputed region; "none" recomputes nothing.
POLICIES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "full": frozenset(),
    "selective": frozenset({"attention", "exchange", "return"}),
    "out": frozenset({"attention", "return"}),
}
_current: ContextVar["SavedOps | None"] = ContextVar("mova_saved_ops", default=None)


class SavedOps:
    """The kept results of one region, which is recomputed at most once."""

    def __init__(self, policy: str) -> None:
        self.offers = POLICIES[policy]
        self.results: deque[tuple[Tensor, ...]] = deque()
        self.recomputing = False

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """(around the first run, around the recomputation)."""
        return self._active(False), self._active(True)

    @contextmanager
    def _active(self, recomputing: bool) -> Iterator[None]:
        before = _current.set(self)
        self.recomputing = recomputing
        try:
            yield
        finally:
            _current.reset(before)


def save_or_reuse(offer: str, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """`compute()`, or what it gave when the region ran first. For tensors without a graph: call it inside the forward
    of an autograd.Function.
    """
    recall = _current.get()
    if recall is None or offer not in recall.offers:
        return compute()
    if not recall.recomputing:
        results = compute()
        # Detached: what becomes a region's output must not hold the graph that holds this list.
        recall.results.append(tuple(x.detach() for x in results))
        return results
    if not recall.results:
        raise MovaError(
            "a checkpointed region can be recomputed once: backward(retain_graph=True) needs checkpointing none"
        )
    return recall.results.popleft()


def saves_attention() -> bool:
    """Whether a region that keeps attention's results is being run or recomputed."""
    recall = _current.get()
    return recall is not None and "attention" in recall.offers


class _KeptAttention(torch.autograd.Function):
    """Attention whose output and log-sum-exp are all that its backward needs beside q, k and v."""

    @staticmethod
    def forward(ctx, attention_lse, attention_backward, q, k, v):
        out, lse = save_or_reuse("attention", lambda: attention_lse(q, k, v))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.attention_backward = attention_backward
        return out

    @staticmethod
    def backward(ctx, dout):
        return (None, None, *ctx.attention_backward(dout, *ctx.saved_tensors))


def keeping(attention: Callable, attention_lse: Callable, attention_backward: Callable) -> Callable:
    """`attention`, except in a region that keeps attention's results: there the two others make it, so that a
    recomputation need not run it again.
    """

    def video_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not saves_attention():
            return attention(q, k, v)
        return _KeptAttention.apply(attention_lse, attention_backward, q, k, v)

    return video_attention
