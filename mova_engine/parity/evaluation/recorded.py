"""Outputs of modules within a network, kept while it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Copies of what the modules return while open, by the given names; the last call of each counts."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def store(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept[name] = output.detach().clone()

        return store

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
