"""Outputs of modules within a network, kept while it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Copies of what the modules return while open, by the given names; those of several calls along dimension 0."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            made = output.detach().clone()
            kept[name] = torch.cat((kept[name], made)) if name in kept else made

        return store

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
