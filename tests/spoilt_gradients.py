"""A tensor whose gradient is not finite."""

import torch
from torch import Tensor


class SpoiltGradient(torch.autograd.Function):
    """Returns x as it is; its gradient is infinite."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad / 0
