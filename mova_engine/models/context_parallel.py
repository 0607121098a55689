"""Which of a clip's video tokens this process computes. Models ask a `Sharding`; here is the one that leaves nothing
out, and a layer further down has the one that shares a clip among processes.
"""

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor


class Sharding:
    """All tokens are this process's own. The video tower and the bridge compute on own tokens only; the audio tower on
    all of its tokens in every process.
    """

    # Processes that share a clip.
    size = 1

    def take(self, x: Tensor, dim: int = 1) -> Tensor:
        """Own tokens of a tensor that has all of them along `dim`."""
        return x

    def put(self, own: Tensor, total: int) -> Tensor:
        """[b, own, d] -> [b, total, d] with own tokens in their places; what others' places hold is up to the sharding
        (zeros in training, where each process takes the loss on its own tokens).
        """
        return own

    def summed(self, x: Tensor) -> Tensor:
        """The sum of all processes' shares of x."""
        return x

    def agreed(self, x: Tensor) -> Tensor:
        """x, which all processes computed, as one of them has it: equal to the last bit."""
        return x

    def running(self, total: int) -> AbstractContextManager:
        """Around everything that works on a video of `total` tokens, also around its recomputation."""
        return nullcontext()


WHOLE = Sharding()
