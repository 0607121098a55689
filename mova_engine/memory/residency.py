"""Decides when each part of a model (text encoder, codecs, experts, audio tower, bridge) is on the device.

Work is divided into stages, which `config.stages` declares in order. A stage is a with-block:

    with residency.stage(ENCODE_TEXT):
        features = codecs.text.encode(prompts)

At its start, parts that may not be on the device during this stage are evicted, then the stage's own parts are loaded.
At its end the stage's parts are evicted, except those that some stage allows beside its own (`ModelStage.beside`):
these remain until a stage starts that does not allow them. A part is read from its files when the first stage that uses
it starts. An evicted part goes to host memory, or is dropped and read from its files again. While a part is on the
device, its host copy is kept, so that evicting it copies nothing. A Residency is not thread-safe.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager as Block
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mova_engine.config.stages import ModelStage
from mova_engine.errors import MovaError
from mova_engine.models.rope import RopeTables


@dataclass(frozen=True)
class Part:
    """A component whose weights move between the host and the device.

    value: a frozen module, or an object with a frozen module as its attribute `weights`. `weights` is None for embedded
    codecs (a few kB, never moved). Weights start in host memory, or are not read yet: None, or on the meta device.
    read: reads the weights from their files onto a device; None: there are no files.
    waits: where the weights are between stages.
    stays: the part is on the device already and stays there; it is only counted.
    """

    name: str
    value: Any
    read: Callable[[torch.device], None] | None = None
    waits: Literal["host", "files"] = "host"
    stays: bool = False

    @property
    def dropped(self) -> bool:
        """Whether eviction frees the weights, to be read from their files again."""
        return self.waits == "files" and self.read is not None


class Event(NamedTuple):
    """One move of a part.

    what: "read" from its files onto the device; "loaded" from host memory; "evicted" to host memory; "dropped".
    resident: bytes of all parts on the device after the move.
    """

    part: str
    what: Literal["read", "loaded", "evicted", "dropped"]
    resident: int


@dataclass(frozen=True)
class PartReport:
    """Counters of one part: its size in bytes; how often it was read from files onto the device, loaded onto the device
    (from files or from the host) and evicted; whether it is on the device now.
    """

    bytes: int
    read: int
    loaded: int
    evicted: int
    resident: bool


@dataclass(frozen=True)
class ResidencyReport:
    """The moves of a Residency so far.

    peak: part -> bytes, at the time when the parts on the device were largest. stages: the same for each stage.
    """

    parts: dict[str, PartReport]
    events: tuple[Event, ...]
    peak: dict[str, int]
    stages: dict[str, dict[str, int]]

    @property
    def peak_bytes(self) -> int:
        return sum(self.peak.values())

    def __str__(self) -> str:
        """A table: a line per part, then the peak."""
        lines = [f"{'part':<20}{'GB':>8}{'read':>6}{'loaded':>8}{'evicted':>9}  now"]
        for name, part in self.parts.items():
            now = "device" if part.resident else "-"
            counts = f"{part.read:>6}{part.loaded:>8}{part.evicted:>9}"
            lines.append(f"{name:<20}{part.bytes / 1e9:>8.3f}{counts}  {now}")
        return "\n".join([*lines, f"peak {self.peak_bytes / 1e9:.3f} GB: {', '.join(self.peak) or 'nothing'}"])


class Residency:
    """Moves `parts` to `device` and away from it as `stages` declare. Raises ValueError if two parts share a name."""

    def __init__(self, device: torch.device | str, parts: Sequence[Part], stages: Sequence[ModelStage] = ()) -> None:
        self.device = torch.device(device)
        self._parts = {part.name: part for part in parts}
        if len(self._parts) < len(parts):
            raise ValueError(f"each part needs a different name, got {[part.name for part in parts]}")
        self._stages = {stage.name: stage for stage in stages}
        # Parts that are not evicted at the end of the last block that uses them.
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
        """Whether a part remains on the device after a stage that uses it, until a stage starts that does not allow
        it.
        """
        return name in self._lingering

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within the block, the stage's parts are on the device. Parts that this Residency does not have are skipped.

        Blocks may nest: the parts of an outer block stay. Raises KeyError for a stage that is not declared.
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
        """Read the named parts from their files into host memory now, if that is where they wait between stages.

        Unknown names and parts that are read already are skipped.
        """
        for name in names:
            part = self._parts.get(name)
            if part is not None and not part.dropped and name not in self._resident and _is_absent(part):
                self._read(part, torch.device("cpu"))

    def check_idle(self) -> None:
        """MovaError while a stage uses a part."""
        used = [name for name, users in self._users.items() if users]
        if used:
            raise MovaError(f"{', '.join(used)} in use: change them between clips, not from on_step or on_stage")

    def call_back(self, name: str) -> bool:
        """Evict a part that no stage uses, so that its weights can be changed where they wait. Returns whether they are
        there to be changed; False: they are read from their files when they are wanted.
        """
        part = self._parts[name]
        if part.name in self._resident and not part.stays:
            self._evict(part)
        return not _is_absent(part)

    def drop_unused(self) -> None:
        """Free the host memory of parts that wait in files and are not on the device."""
        for part in self._parts.values():
            if part.dropped and part.name not in self._resident and not _is_absent(part):
                _drop(part)

    def report(self) -> ResidencyReport:
        """Return the counters of each part, all moves, and the peaks so far."""

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
        # Adapters may have been added since.
        self._bytes[part.name] = _bytes(weights)
        if absent:
            self._read(part, self.device)
        elif weights is not None and part.dropped:
            # No host copy is kept: this part is dropped when it is evicted.
            _HostWeights(weights).copy_to(self.device)
        elif weights is not None:
            self._hosted[part.name] = _HostWeights(weights)
            self._hosted[part.name].copy_to(self.device)
        self._resident.add(part.name)
        self._note(part, "read" if absent else "loaded")
        self._note_peak()

    def _read(self, part: Part, device: torch.device) -> None:
        assert part.read is not None, "only a part with files can be absent"
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
    """The with-block of a stage of `residency`; a block that does nothing if `residency` is None."""
    return nullcontext() if residency is None else residency.stage(name)


class _HostWeights:
    """Keeps the parameters and buffers of a module while the module holds copies of them on a device."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, Tensor]] = [
            (tensors, name, tensor)
            for each in _weighted(module)
            for tensors in (each._parameters, each._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def copy_to(self, device: torch.device) -> None:
        copies: dict[int, Tensor] = {}
        # All copies are made before the first is put into the module: out of memory leaves the module unchanged.
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
    """Free the rotary tables. They are not weights: the next forward makes them again, on the device of its inputs."""
    for each in () if module is None else module.modules():
        if isinstance(each, RopeTables):
            each.cpu()  # any move of the module drops the tables


def _weighted(module: nn.Module) -> Iterator[nn.Module]:
    """The modules within `module`, except the rotary tables, which the experts share."""
    return (each for each in module.modules() if not isinstance(each, RopeTables))


def _drop(part: Part) -> None:
    if isinstance(part.value, nn.Module):
        _HostWeights(part.value).copy_to(torch.device("meta"))
    else:
        part.value.weights = None


def _weights(part: Part) -> nn.Module | None:
    return part.value if isinstance(part.value, nn.Module) else part.value.weights


def _is_absent(part: Part) -> bool:
    """Whether a part has files and its weights are not read yet."""
    weights = _weights(part)
    return part.read is not None and (weights is None or any(x.device.type == "meta" for x in weights.parameters()))


def _bytes(module: nn.Module | None) -> int:
    """Bytes of a module's parameters and buffers; tied tensors count once."""
    if module is None:
        return 0
    own = [x for each in _weighted(module) for x in (*each.parameters(False), *each.buffers(False))]
    return sum(x.numel() * x.element_size() for x in {id(x): x for x in own}.values())
