"""When the parts of a model are on the device: text encoder, codecs, experts, audio tower, bridge.

Work is cut into stages, which are declared in their order (`config.stages`). A stage is a with-block:

    with residency.stage(ENCODE_TEXT):
        features = codecs.text.encode(prompts)

When it begins, what may not lie beside its parts leaves the device, then its parts come; when it ends they leave, but
for those that may lie beside another stage's: these stay until a stage begins that has no place for them. A part is
read from its files when the first stage that uses it begins. When it leaves, it goes to the host's memory, from where
it comes back, or is dropped, and read again. Frozen weights are copied to the host once: while they are on the device,
the host keeps its own. One thread uses a residency.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager as Block
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mova_engine.config.stages import ModelStage
from mova_engine.models.rope import RopeTables


@dataclass(frozen=True)
class Part:
    """Something that comes and goes.

    value: a frozen module, or what holds one as its attribute `weights`, None where it has none that move (the embedded
    codecs, of a few kB). The weights lie in the host's memory, or are yet to be read: None, or on the meta device.
    read: reads the weights from their files onto a device; None: there are no files.
    waits: where the weights are between stages.
    stays: it lies on the device already, and stays there: it is only counted.
    """

    name: str
    value: Any
    read: Callable[[torch.device], None] | None = None
    waits: Literal["host", "files"] = "host"
    stays: bool = False

    @property
    def dropped(self) -> bool:
        """Whether its weights are given up when it leaves, to be read again."""
        return self.waits == "files" and self.read is not None


class Event(NamedTuple):
    """What happened to a part, and the bytes of all parts on the device after that.

    read: from its files onto the device; loaded: from the host's memory; evicted: to it; dropped: to be read again.
    """

    part: str
    what: Literal["read", "loaded", "evicted", "dropped"]
    resident: int


@dataclass(frozen=True)
class PartReport:
    """A part's bytes, how often it was read from files, came to the device and left it, and whether it is there."""

    bytes: int
    read: int
    came: int
    left: int
    resident: bool


@dataclass(frozen=True)
class ResidencyReport:
    """What a residency did so far. peak: bytes by part when most lay on the device; stages: the most in each stage."""

    parts: dict[str, PartReport]
    events: tuple[Event, ...]
    peak: dict[str, int]
    stages: dict[str, dict[str, int]]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())

    def __str__(self) -> str:
        """A table: a line per part, then the peak."""
        lines = [f"{'part':<20}{'GB':>8}{'read':>6}{'came':>6}{'left':>6}  now"]
        for name, part in self.parts.items():
            now = "device" if part.resident else "-"
            lines.append(f"{name:<20}{part.bytes / 1e9:>8.3f}{part.read:>6}{part.came:>6}{part.left:>6}  {now}")
        return "\n".join([*lines, f"peak {self.peak_bytes / 1e9:.3f} GB: {', '.join(self.peak) or 'nothing'}"])


class Residency:
    """Brings `parts` to `device` and takes them away again, as `stages` declare. Raises ValueError where two parts have
    one name.
    """

    def __init__(self, device: torch.device | str, parts: Sequence[Part], stages: Sequence[ModelStage] = ()) -> None:
        self.device = torch.device(device)
        self._parts = {part.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError(f"parts have names of their own, got {[part.name for part in parts]}")
        self._stages = {stage.name: stage for stage in stages}
        # What does not leave with the last block that uses it.
        self._lingering = {name for stage in stages for name in stage.beside}
        self._bytes = {part.name: _bytes(_weights(part)) for part in parts}
        self._resident = {part.name for part in parts if part.stays}
        self._users = dict.fromkeys(self._parts, 0)
        self._hosted: dict[str, _HostWeights] = {}
        self._events: list[Event] = []
        self._peak: dict[str, int] = {}
        self._stage_peaks: dict[str, dict[str, int]] = {}
        self._note_peak()

    def lingers(self, name: str) -> bool:
        """Whether a part stays on the device after a stage that uses it, until one has no place for it."""
        return name in self._lingering

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within the block those of the stage's parts that there are lie on the device, beside what the stage allows.

        KeyError for a stage that is not declared. Blocks may nest: what an outer one uses stays.
        """
        stage = self._stages[name]
        for part in self._parts.values():
            in_place = part.stays or self._users[part.name] or part.name in (*stage.parts, *stage.beside)
            if part.name in self._resident and not in_place:
                self._evict(part)
        with ExitStack() as used:
            for each in stage.parts:
                if each in self._parts:
                    used.enter_context(self._use(self._parts[each]))
            now = self._now()
            if sum(now.values()) > sum(self._stage_peaks.get(name, {}).values()):
                self._stage_peaks[name] = now
            yield

    @contextmanager
    def _use(self, part: Part) -> Iterator[None]:
        if part.name not in self._resident:
            self._load(part)
        self._users[part.name] += 1
        try:
            yield
        finally:
            self._users[part.name] -= 1
            if not self._users[part.name] and not part.stays and part.name not in self._lingering:
                self._evict(part)

    def read_ahead(self, *names: str) -> None:
        """Read parts, of those that there are, into the host's memory, where they wait and are not yet."""
        for name in names:
            part = self._parts.get(name)
            if part is not None and not part.dropped and name not in self._resident and _is_absent(part):
                self._read(part, torch.device("cpu"))

    def drop_unused(self) -> None:
        """Free the host's memory of what waits in files, and has not been needed so far."""
        for part in self._parts.values():
            if part.dropped and part.name not in self._resident and not _is_absent(part):
                _drop(part)

    def report(self) -> ResidencyReport:
        """What came and went, and the most that lay on the device at once."""

        def times(name: str, *what: str) -> int:
            return sum(event.part == name and event.what in what for event in self._events)

        parts = {
            name: PartReport(
                self._bytes[name],
                times(name, "read"),
                times(name, "read", "loaded"),
                times(name, "evicted", "dropped"),
                name in self._resident,
            )
            for name in self._parts
        }
        return ResidencyReport(parts, tuple(self._events), dict(self._peak), dict(self._stage_peaks))

    def _load(self, part: Part) -> None:
        weights, absent = _weights(part), _is_absent(part)
        if absent:
            self._read(part, self.device)
        elif weights is not None and part.dropped:
            # Held by nobody else: what moves to the device leaves no copy behind.
            _HostWeights(weights).copy_to(self.device)
        elif weights is not None:
            self._hosted[part.name] = _HostWeights(weights)
            self._hosted[part.name].copy_to(self.device)
        self._resident.add(part.name)
        self._note(part, "read" if absent else "loaded")
        self._note_peak()

    def _read(self, part: Part, device: torch.device) -> None:
        part.read(device)
        self._bytes[part.name] = _bytes(_weights(part))

    def _evict(self, part: Part) -> None:
        weights = _weights(part)
        _drop_tables(weights)
        if part.dropped:
            _drop(part)
        elif part.name in self._hosted:
            self._hosted.pop(part.name).restore()
        elif weights is not None:
            _HostWeights(weights).copy_to(torch.device("cpu"))
        self._resident.discard(part.name)
        self._note(part, "dropped" if part.dropped else "evicted")

    def _note(self, part: Part, what: Literal["read", "loaded", "evicted", "dropped"]) -> None:
        self._events.append(Event(part.name, what, sum(self._now().values())))

    def _now(self) -> dict[str, int]:
        return {name: self._bytes[name] for name in self._parts if name in self._resident}

    def _note_peak(self) -> None:
        now = self._now()
        if sum(now.values()) > sum(self._peak.values()):
            self._peak = now


def stage(residency: Residency | None, name: str) -> Block[None]:
    """The block of a stage of `residency`; without one, nothing moves."""
    return nullcontext() if residency is None else residency.stage(name)


class _HostWeights:
    """The parameters and buffers of a module as they are, while copies of them stand in their place."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[dict[str, Tensor | None], str, Tensor]] = [
            (tensors, name, tensor)
            for each in _weighted(module)
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


def _drop_tables(module: nn.Module | None) -> None:
    """Rotary tables are made anew where their tower is next: they are no weights, and know the device of their own."""
    for each in () if module is None else module.modules():
        if isinstance(each, RopeTables):
            each.cpu()  # drops them, as whatever moves a module does


def _weighted(module: nn.Module) -> Iterator[nn.Module]:
    """What a module is made of, without its rotary tables, which experts share."""
    return (each for each in module.modules() if not isinstance(each, RopeTables))


def _drop(part: Part) -> None:
    if isinstance(part.value, nn.Module):
        _HostWeights(part.value).copy_to(torch.device("meta"))
    else:
        part.value.weights = None


def _weights(part: Part) -> nn.Module | None:
    return part.value if isinstance(part.value, nn.Module) else part.value.weights


def _is_absent(part: Part) -> bool:
    """Whether a part's weights are yet to be read."""
    weights = _weights(part)
    return part.read is not None and (weights is None or any(x.device.type == "meta" for x in weights.parameters()))


def _bytes(module: nn.Module | None) -> int:
    """Bytes of a module's parameters and buffers; tied ones count once."""
    if module is None:
        return 0
    own = [x for each in _weighted(module) for x in (*each.parameters(False), *each.buffers(False))]
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in own}.values())
