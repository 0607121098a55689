"""Summing gradients over ranks, in flat buckets."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mova_engine.backend import describe_backend
from mova_engine.distributed.collectives import Group

# Elements of a bucket: large enough for the network's full rate, small beside the gradients themselves.
BUCKET = 16 * 2**20


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
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bucket.append(gradient)
        size += gradient.numel()
        if size >= BUCKET:
            _sum(bucket, group, divisor)
            bucket, size = [], 0
    if bucket:
        _sum(bucket, group, divisor)


def _sum(bucket: list[Tensor], group: Group, divisor: int) -> None:
    flat = torch.cat([x.reshape(-1) for x in bucket])
    group.all_reduce(flat)
    if divisor != 1:
        flat /= divisor
    for x, summed in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
        x.copy_(summed.view_as(x))
