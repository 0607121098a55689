"""The weights that are trained: float32 masters, what the model computes with, and their moving average.

In fp32 the model's parameters are the masters. In bf16 the model holds bfloat16 copies: every gradient is added in
float32 to its master as soon as the backward pass has made it, and the copies are renewed after each step. That is what
FSDP2's mixed precision does; unlike autocast it keeps the towers' own choices (float32 time embedding, norms and
rotation) and costs no casts in the forward.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.train.optimizer import NamedWeight


class Weights:
    """All trained weights of a model in order of its parameters."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, ema_decay: float = 0.0) -> None:
        """model: on its device, in float32; it computes in `dtype` from here on. ema_decay 0: no moving average."""
        names, self.parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        self.copies = dtype != torch.float32
        if self.copies:
            masters = [p.detach().float().clone() for p in self.parameters]
            model.to(dtype)
            for parameter, master in zip(self.parameters, masters, strict=True):
                parameter.register_post_accumulate_grad_hook(_adding_to(master))
        else:
            masters = list(self.parameters)
        self.masters = [NamedWeight(name, master) for name, master in zip(names, masters, strict=True)]
        self.ema_decay = ema_decay
        self.ema = [master.detach().clone() for master in masters] if ema_decay else None

    def tensors(self) -> list[Tensor]:
        """The masters."""
        return [weight.tensor for weight in self.masters]

    def gradients(self) -> dict[str, list[Tensor]]:
        """Gradients of the masters by component; those of weights that took no part in the step are left out."""
        grads: dict[str, list[Tensor]] = {}
        for weight in self.masters:
            if weight.tensor.grad is not None:
                grads.setdefault(weight.component, []).append(weight.tensor.grad)
        return grads

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for weight in self.masters:
            weight.tensor.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Follow the masters after an optimizer step: renew the model's copies, move the average."""
        if self.copies:
            torch._foreach_copy_(self.parameters, self.tensors())
        if self.ema is not None:
            torch._foreach_lerp_(self.ema, [tensor.detach() for tensor in self.tensors()], 1 - self.ema_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model computes with the moving average, where there is one; no training step may run."""
        if self.ema is None:
            yield
            return
        if self.copies:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.ema)
            try:
                yield
            finally:
                with torch.no_grad():
                    torch._foreach_copy_(self.parameters, self.tensors())
            return
        kept = [parameter.data for parameter in self.parameters]
        _point(self.parameters, self.ema)
        try:
            yield
        finally:
            _point(self.parameters, kept)

    @torch.no_grad()
    def load(self, masters: Sequence[Tensor], ema: Sequence[Tensor] | None) -> None:
        """Take over saved masters and, where there is one, their moving average."""
        torch._foreach_copy_([tensor.detach() for tensor in self.tensors()], list(masters))
        if self.ema is not None:
            torch._foreach_copy_(self.ema, list(masters if ema is None else ema))
        if self.copies:
            torch._foreach_copy_(self.parameters, self.tensors())


def _adding_to(master: Tensor):
    def hook(parameter: Tensor) -> None:
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    return hook


def _point(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor
