"""The trained weights: float32 masters, the model's own copies, and the moving average.

In fp32 the model's parameters are the masters. In bf16 the model holds bfloat16 copies: a post-accumulate hook adds
every gradient in float32 to the master's, and the copies are updated after each step. FSDP2's mixed precision works the
same way; unlike autocast it keeps the towers' own dtypes (float32 time embedding, norms and rotation) and needs no
casts in the forward.

With sharded weights (`parallel.shard`) the masters are plain tensors with this process's rows of the parameters, and so
are average, gradients and moments: optimizers see ordinary tensors.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor

from mova_engine.distributed.fsdp import LocalShard, Shards, local_rows
from mova_engine.train.optimizer import NamedWeight


class Weights:
    """All trained weights of a model, in the order of its parameters."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, ema_decay: float = 0.0, shards: Shards | None = None
    ) -> None:
        """model: on its device, in float32; it is converted to `dtype`. ema_decay: 0: no moving average.

        shards: of a model with sharded weights, whose compute dtype is the one that it was sharded for.
        """
        names, self.parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
        self.shards = shards
        self.copies = dtype != torch.float32 and shards is None
        if self.copies:
            masters = [p.detach().float().clone() for p in self.parameters]
            if any(p.dtype != dtype for p in self.parameters):
                # An adapted model is in `dtype` already, and may hold quantised weights: it is not converted.
                model.to(dtype)
            for parameter, master in zip(self.parameters, masters, strict=True):
                parameter.register_post_accumulate_grad_hook(_adding_to(master))
        else:
            masters = list(self.parameters)
        pieces = [LocalShard(x, tuple(x.shape)) if shards is None else shards.piece(x) for x in masters]
        self.masters = [NamedWeight(*each) for each in zip(names, pieces, strict=True)]
        self.ema_decay = ema_decay
        self.ema = [tensor.detach().clone() for tensor in self.tensors()] if ema_decay else None

    def tensors(self) -> list[Tensor]:
        """The masters."""
        return [weight.tensor for weight in self.masters]

    def gradients(self) -> dict[str, list[Tensor]]:
        """Gradients of the masters, by component. Weights that took no part in the step are left out."""
        grads: dict[str, list[Tensor]] = {}
        for weight, parameter in zip(self.masters, self.parameters, strict=True):
            if self.shards is not None:
                weight.tensor.grad = None if parameter.grad is None else local_rows(parameter.grad)
            if weight.tensor.grad is not None:
                grads.setdefault(weight.component, []).append(weight.tensor.grad)
        return grads

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for weight, parameter in zip(self.masters, self.parameters, strict=True):
            weight.tensor.grad = parameter.grad = None

    @torch.no_grad()
    def renew_copies(self) -> None:
        """After an optimizer step, also one that changed nothing: the model's copies have the masters' values."""
        if self.copies:
            torch._foreach_copy_(self.parameters, self.tensors())

    @torch.no_grad()
    def average(self) -> None:
        """After an optimizer step that changed the weights: the moving average follows them."""
        if self.ema is not None:
            torch._foreach_lerp_(self.ema, [tensor.detach() for tensor in self.tensors()], 1 - self.ema_decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the moving average as its weights, if there is one. No step may run in it."""
        if self.shards is not None:
            with self.shards.evaluation(), self._exchanged():
                yield
            return
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

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        """Within the block masters and average have each other's values: the sharded model refers to the masters'
        memory.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for master, average in zip(self.tensors(), self.ema or (), strict=self.ema is not None):
            kept = master.clone()
            master.copy_(average)
            average.copy_(kept)

    @torch.no_grad()
    def load(self, masters: Sequence[Tensor], ema: Sequence[Tensor] | None) -> None:
        """Restore saved masters and moving average; ema None: the average starts at the masters."""
        torch._foreach_copy_([tensor.detach() for tensor in self.tensors()], list(masters))
        if self.ema is not None:
            torch._foreach_copy_(self.ema, list(masters if ema is None else ema))
        if self.copies:
            torch._foreach_copy_(self.parameters, self.tensors())


def _adding_to(master: Tensor) -> Callable[[nn.Parameter], None]:
    def hook(parameter: nn.Parameter) -> None:
        grad, parameter.grad = parameter.grad, None
        assert grad is not None, "torch calls the hook after it has accumulated a gradient"
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)

    return hook


def _point(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor
