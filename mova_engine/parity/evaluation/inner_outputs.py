"""What modules inside a network return while it runs, for recorded intermediate results."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn


@contextmanager
def inner_outputs(network: nn.Module, paths: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Within the block, the last output of each submodule by the given name: {name: path of the submodule}."""
    found: dict[str, Any] = {}
    with ExitStack() as hooks:
        for name, path in paths.items():

            def keep(_module: nn.Module, _inputs: Any, output: Any, name: str = name) -> None:
                found[name] = output

            hooks.callback(network.get_submodule(path).register_forward_hook(keep).remove)
        yield found
