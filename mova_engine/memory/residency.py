"""When the parts of a run are on the device: text encoder, codecs, experts.

A stage is a with-block. A part comes to the device when the first block that uses it begins, and leaves it when the
last one ends:

    with residency.use("text_encoder") as encoder:
        features = encoder.encode(prompts)

A part that leaves lies in the host's memory, or nowhere, where it can be loaded again from its folder. Frozen weights
are never copied back from the device: while they are there, the host keeps its own. One thread uses a residency.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """Something that comes and goes.

    value: what a stage is given: a frozen module, or what holds one as its attribute `weights`, None where it has none
    that move (the embedded codecs, of a few kB). Its weights lie in the host's memory when it is declared.
    reload: gives the weights on a device anew; None: they wait in the host's memory.
    stays: it lies on the device already, and stays there: it is only counted.
    """

    name: str
    value: Any
    reload: Callable[[torch.device], nn.Module] | None = None
    stays: bool = False


class Event(NamedTuple):
    """What happened to a part, and the bytes of all parts on the device after that."""

    part: str
    what: Literal["loaded", "evicted", "dropped"]
    resident: int


@dataclass(frozen=True)
class PartReport:
    """A part's bytes, how often it came to the device and left it, and whether it is there."""

    bytes: int
    loaded: int
    evicted: int
    resident: bool


@dataclass(frozen=True)
class ResidencyReport:
    """What a residency did so far. peak: bytes by part when most lay on the device."""

    parts: dict[str, PartReport]
    events: tuple[Event, ...]
    peak: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())

    def __str__(self) -> str:
        """A table: a line per part, then the peak."""
        lines = [f"{'part':<20}{'GB':>8}{'loaded':>8}{'evicted':>9}  now"]
        for name, part in self.parts.items():
            now = "device" if part.resident else "-"
            lines.append(f"{name:<20}{part.bytes / 1e9:>8.3f}{part.loaded:>8}{part.evicted:>9}  {now}")
        return "\n".join([*lines, f"peak {self.peak_bytes / 1e9:.3f} GB: {', '.join(self.peak) or 'nothing'}"])


class Residency:
    """Brings `parts` to `device` and takes them away again. keep: what has come stays, for work that never ends."""

    def __init__(self, device: torch.device | str, parts: Sequence[Part], keep: bool = False) -> None:
        self.device, self.keep = torch.device(device), keep
        self._parts = {part.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError(f"parts have names of their own, got {[part.name for part in parts]}")
        self._bytes = {part.name: _bytes(_weights(part)) for part in parts}
        self._resident = {part.name for part in parts if part.stays}
        self._users = dict.fromkeys(self._parts, 0)
        self._hosted: dict[str, _HostWeights] = {}
        self._events: list[Event] = []
        self._peak: dict[str, int] = {}
        self._note_peak()

    def __contains__(self, name: str) -> bool:
        return name in self._parts

    @contextmanager
    def use(self, name: str) -> Iterator[Any]:
        """Within the block the part is on the device; gives its value. Blocks may nest, also of one part."""
        part = self._parts[name]
        if name not in self._resident:
            self._load(part)
        self._users[name] += 1
        try:
            yield part.value
        finally:
            self._users[name] -= 1
            if not self._users[name] and not part.stays and not self.keep:
                self._evict(part)

    def drop_unused(self) -> None:
        """Free the host's memory of what can be loaded again, and has not been needed so far."""
        for part in self._parts.values():
            if part.reload is not None and part.name not in self._resident and _weights(part) is not None:
                part.value.weights = None

    def report(self) -> ResidencyReport:
        """What came and went, and the most that lay on the device at once."""
        parts = {
            name: PartReport(
                self._bytes[name],
                sum(event.part == name and event.what == "loaded" for event in self._events),
                sum(event.part == name and event.what != "loaded" for event in self._events),
                name in self._resident,
            )
            for name in self._parts
        }
        return ResidencyReport(parts, tuple(self._events), dict(self._peak))

    def _load(self, part: Part) -> None:
        weights = _weights(part)
        if part.reload is not None:
            # Held by nobody else: what moves to the device leaves no copy behind.
            part.value.weights = part.reload(self.device) if weights is None else weights.to(self.device)
        elif weights is not None:
            self._hosted[part.name] = _HostWeights(weights)
            self._hosted[part.name].copy_to(self.device)
        self._resident.add(part.name)
        self._note(part, "loaded")
        self._note_peak()

    def _evict(self, part: Part) -> None:
        if part.reload is not None:
            part.value.weights = None
        elif part.name in self._hosted:
            self._hosted.pop(part.name).restore()
        self._resident.discard(part.name)
        self._note(part, "evicted" if part.reload is None else "dropped")

    def _note(self, part: Part, what: Literal["loaded", "evicted", "dropped"]) -> None:
        self._events.append(Event(part.name, what, sum(self._bytes[name] for name in self._resident)))

    def _note_peak(self) -> None:
        now = {name: self._bytes[name] for name in self._parts if name in self._resident}
        if sum(now.values()) > sum(self._peak.values()):
            self._peak = now


@contextmanager
def stage(residency: Residency | None, *names: str) -> Iterator[None]:
    """Within the block those of `names` that are parts of `residency` are on the device; without one, nothing moves."""
    with ExitStack() as used:
        for name in names if residency is not None else ():
            if name in residency:
                used.enter_context(residency.use(name))
        yield


class _HostWeights:
    """The host's parameters and buffers of a module, while copies of them stand in their place."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = [
            (tensors, name, tensor)
            for each in module.modules()
            for tensors in (each._parameters, each._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def copy_to(self, device: torch.device) -> None:
        copies: dict[int, Tensor] = {}
        # All are there before the first takes its place: a device without room leaves the module as it was.
        for _, _, tensor in self._places:
            if id(tensor) not in copies:  # tied weights stay tied
                copy = tensor.detach().to(device)
                is_parameter = isinstance(tensor, nn.Parameter)
                copies[id(tensor)] = nn.Parameter(copy, requires_grad=False) if is_parameter else copy
        for tensors, name, tensor in self._places:
            tensors[name] = copies[id(tensor)]

    def restore(self) -> None:
        for tensors, name, tensor in self._places:
            tensors[name] = tensor


def _weights(part: Part) -> nn.Module | None:
    return part.value if isinstance(part.value, nn.Module) else part.value.weights


def _bytes(module: nn.Module | None) -> int:
    """Bytes of a module's parameters and buffers; tied ones count once."""
    if module is None:
        return 0
    return sum(x.numel() * x.element_size() for x in [*module.parameters(), *module.buffers()])
