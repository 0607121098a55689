"""Context-parallel interface seen by the model. `Sharding` is the single-rank no-op; `distributed.context` has the
implementation for a group of ranks that share a clip.
"""

from typing import Any, Protocol, TypeGuard

from torch import Tensor


class Sharding:
    """The single-rank case: this rank computes all video tokens. In general the video tower and the bridge compute on
    the rank's own video tokens, and the audio tower on all audio tokens in every rank.
    """

    # Processes that share a clip, and this one's place among them.
    size = 1
    rank = 0

    def starts(self, total: int) -> tuple[int, ...]:
        """Of `total` tokens, the first that each process has."""
        return (0,)

    def shard(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of x, which has all tokens along `dim`."""
        return x

    def unshard(self, own: Tensor, total: int) -> Tensor:
        """[b, own, d] -> [b, total, d] with own tokens in their places; what others' places hold is up to the sharding
        (zeros in training, where each process takes the loss on its own tokens).
        """
        return own

    def summed(self, x: Tensor) -> Tensor:
        """The sum of all processes' shares of x."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """x, which all processes computed, as one of them has it: equal to the last bit."""
        return x


NO_CP = Sharding()


class SharedAttention(Protocol):
    """A role of attention whose queries, keys and values may leave for other ranks one by one, while the next of them
    is computed. exchanges: whether any of them leaves.
    """

    exchanges: bool

    def send(self, x: Tensor, tokens: int) -> Any:
        """Start to send queries, keys or values [b, s, h, e] of a clip of `tokens` tokens; returns what `finish` takes.

        What is sent last is what the backward has first.
        """
        ...

    def finish(self, q: Any, k: Any, v: Any, tokens: int) -> Tensor:
        """Attention to what was sent -> as q [b, s, h, e]."""
        ...


def exchanging(attention: Any, tokens: int | None) -> TypeGuard[SharedAttention]:
    """Whether an attention to a clip of `tokens` tokens (None: of this rank alone) takes what was sent to it."""
    return tokens is not None and getattr(attention, "exchanges", False)
