"""Summing gradients over ranks, in flat buckets: after the backward, or while it still makes others."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.backend import describe_backend
from mova_engine.distributed.collectives import Group

# Elements of a bucket: large enough for the network's full rate, small beside the gradients themselves.
BUCKET = 16 * 2**20
# Buckets on their way at once, beside a backward: what they take of the device's memory.
IN_FLIGHT = 4
_LAYER = re.compile(r"\.(\d+)\.")


@torch.no_grad()
def sum_gradients(gradients: Sequence[Tensor], group: Group, divisor: int = 1) -> None:
    """Replace every gradient by its sum over the group divided by `divisor`. All ranks pass the same gradients in the
    same order.

    Gradients are summed over ranks that share a clip and averaged over ranks with different clips, so that `divisor` is
    the number of data-parallel groups.
    """
    if group.size == 1 or not gradients:
        return
    describe_backend(gradients[0].device.type).finish_backward()
    for bucket in _buckets(gradients):
        _start(bucket, group, divisor)()


class BackwardSums:
    """Sums gradients over a group beside the backward that makes them.

    Buckets are of weights in the order in which a backward comes to them: from the last layer to the first, of all
    components together, then what is outside of layers. A bucket is sent when all its gradients are there and the
    buckets before it are sent, so that all ranks send the same ones in the same order, whatever comes first. What is
    not complete, such as the bucket of a weight that took no part, is sent by `finish`.
    """

    def __init__(self, weights: Sequence[tuple[str, Tensor, Tensor]], group: Group, divisor: int = 1) -> None:
        """weights: name; the parameter for which autograd makes a gradient; the tensor whose `grad` is then summed,
        which may be the parameter. group, divisor: as of `sum_gradients`.
        """
        self.group, self.divisor = group, divisor
        self._weights = sorted(weights, key=_place)
        self._buckets: list[list[tuple[str, Tensor, Tensor]]] = []
        # By parameter the number of its bucket; of each bucket how many gradients are missing. Empty outside of a sum.
        self._bucket_of: dict[Tensor, int] = {}
        self._missing: list[int] = []
        self._next = 0
        self._sent: deque[Callable[[], None]] = deque()
        for _, parameter, _ in weights:
            parameter.register_post_accumulate_grad_hook(self._came)

    def begin(self, idle: Iterable[nn.Module] = ()) -> None:
        """The next backward is the step's last: gradients are sent as it makes them. idle: components that the step
        does not use.
        """
        unused = {parameter for component in idle for parameter in component.parameters()}
        taking_part = [weight for weight in self._weights if weight[1] not in unused]
        self._buckets, self._next = _buckets(taking_part, lambda weight: weight[1].numel()), 0
        self._bucket_of = {parameter: i for i, bucket in enumerate(self._buckets) for _, parameter, _ in bucket}
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """After that backward: all gradients are summed."""
        while self._next < len(self._buckets):
            self._send()
        while self._sent:
            self._sent.popleft()()
        self._bucket_of = {}

    def _came(self, parameter: Tensor) -> None:
        number = self._bucket_of.get(parameter)
        if number is None:
            return
        self._missing[number] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        """The next bucket, as far as there are gradients."""
        gradients = [owner.grad for _, _, owner in self._buckets[self._next] if owner.grad is not None]
        self._next += 1
        if not gradients:
            return
        if len(self._sent) == IN_FLIGHT:
            self._sent.popleft()()
        self._sent.append(_start(gradients, self.group, self.divisor))


def _place(weight: tuple[str, Tensor, Tensor]) -> float:
    """Where a backward comes to a weight, as a number to sort by."""
    found = _LAYER.search(weight[0])
    return -int(found[1]) if found else 1.0


def _buckets(items: Sequence[Any], size: Callable[[Any], int] = Tensor.numel) -> list[list[Any]]:
    """Consecutive items, of `BUCKET` elements or a little more each, the last of fewer."""
    found: list[list[Any]] = []
    elements = BUCKET
    for item in items:
        if elements >= BUCKET:
            found.append([])
            elements = 0
        found[-1].append(item)
        elements += size(item)
    return found


def _start(bucket: Sequence[Tensor], group: Group, divisor: int) -> Callable[[], None]:
    """Start summing gradients; the function that is returned waits and gives them their values."""
    flat = torch.cat([x.reshape(-1) for x in bucket])
    summed = group.start_all_reduce(flat)

    @torch.no_grad()
    def finish() -> None:
        found = summed()
        if divisor != 1:
            found /= divisor
        for x, values in zip(bucket, found.split([x.numel() for x in bucket]), strict=True):
            x.copy_(values.view_as(x))

    return finish
