"""The generic kernel: an operator of the device, computed by a function on CPU tensors over the same memory."""

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ascend.emulator.memory import CPU, DEVICE, current_device, on_cpu, on_device

# How often each operator ran in this process: what a run really used.
executed: collections.Counter[str] = collections.Counter()

# Operators for which PyTorch itself lets CPU tensors meet the device's.
_MIXED = {
    *("aten::index.Tensor", "aten::index.Tensor_out", "aten::index_put", "aten::index_put_"),
    *("aten::_index_put_impl_", "aten::_copy_from", "aten::repeat_interleave.Tensor"),
}


class Kernel:
    """Runs `function` (default: the operator itself) on CPU views, and hands its results to the device."""

    def __init__(self, name: str, operator: Any, function: Callable | None = None) -> None:
        self.name, self.function = name, function or operator
        schema = operator._schema
        self.arguments = [a.name for a in schema.arguments]
        written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        # `out=` tensors, which are resized where they are empty.
        self.out = {a.name for a in written if a.kwarg_only}
        # For each result the argument that it is, or None for a new tensor.
        owner = {symbol: a.name for a in written for symbol in a.alias_info.before_set}
        self.results = [
            next((owner[s] for s in r.alias_info.before_set if s in owner), None) if r.alias_info else None
            for r in schema.returns
        ]
        self.takes_generator = "generator" in self.arguments
        self.random = self.takes_generator or torch.Tag.nondeterministic_seeded in operator.tags

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        executed[self.name] += 1
        call = _Call(self, dict(zip(self.arguments, args, strict=False)) | kwargs)
        positional = [call.converted[name] for name in self.arguments[: len(args)]]
        keyword = {name: call.converted[name] for name in kwargs}
        result = call.run(lambda **more: self.function(*positional, **{**keyword, **more}))
        call.fill_resized()
        if not self.results:
            return None
        found = (result,) if len(self.results) == 1 else result
        given = [
            call.given[owner] if owner else _to_device(x, call.device)
            for owner, x in zip(self.results, found, strict=True)
        ]
        return given[0] if len(given) == 1 else tuple(given)


class _Call:
    """One call: its arguments on the CPU, and the device on which its results belong."""

    def __init__(self, kernel: Kernel, given: dict[str, Any]) -> None:
        self.kernel, self.given = kernel, given
        self.device: torch.device | None = None
        self.resized: list[tuple[Tensor, Tensor]] = []
        self._of_host = False
        self.converted = {name: self._convert(name, value) for name, value in given.items()}
        if self._of_host and self.device is not None and self.device.type == DEVICE and kernel.name not in _MIXED:
            self._refuse(CPU)
        if self.device is None or (self.device.type == DEVICE and self.device.index is None):
            self.device = current_device()

    def _refuse(self, other: torch.device) -> None:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {self.device} and "
            f"{other}! (emulator, {self.kernel.name})"
        )

    def _convert(self, name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            self._note(value)
            if name in self.kernel.out and value.device.type == DEVICE and value.numel() == 0:
                self.resized.append((value, torch.empty(0, dtype=value.dtype)))
                return self.resized[-1][1]
            return on_cpu(value)
        if isinstance(value, (list, tuple)) and value and isinstance(value[0], (Tensor, type(None))):
            for x in value:
                if x is not None:
                    self._note(x)
            return [None if x is None else on_cpu(x) for x in value]
        if isinstance(value, torch.device):
            self.device = value
            return CPU
        return None if name == "pin_memory" else value

    def _note(self, x: Tensor) -> None:
        if x.device.type == DEVICE:
            if self.device is None:
                self.device = x.device
            elif self.device != x.device and x.dim():
                self._refuse(x.device)
        elif x.dim() and x.device.type == "cpu":
            self._of_host = True

    def run(self, function: Callable[..., Any]) -> Any:
        """Call the function; with random numbers that follow from the device's generator."""
        if not self.kernel.random or self.device.type != DEVICE:
            return function()
        drawn = cpu_generator(self.given.get("generator"), self.device)
        if self.kernel.takes_generator:
            return function(generator=drawn)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(drawn.get_state())
            return function()

    def fill_resized(self) -> None:
        """Give `out=` tensors that came empty their size and values."""
        for target, value in self.resized:
            target.resize_(value.size())
            on_cpu(target).copy_(value)


def _to_device(x: Any, device: torch.device) -> Any:
    if isinstance(x, Tensor):
        return x if device.type == "cpu" else on_device(x, device)
    return [_to_device(y, device) for y in x] if isinstance(x, (list, tuple)) else x


def cpu_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """A CPU generator that is a function of the device generator's seed and offset; the offset moves on."""
    if generator is None or generator.device.type != DEVICE:
        generator = torch.npu.default_generators[device.index or 0]
    state = generator.get_state()
    words = state.view(torch.int64)
    seed, offset = int(words[0]), int(words[1])
    words[1] = offset + 4
    generator.set_state(state)
    mixed = (seed * 0x9E3779B97F4A7C15 + offset * 0xBF58476D1CE4E5B9 + 1) & 0x7FFFFFFFFFFFFFFF
    return torch.Generator().manual_seed(mixed)
