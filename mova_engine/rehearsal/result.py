"""The result of a dry run: sizes, collectives, counted and predicted memory; as text and as plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from mova_engine.rehearsal.simulated import Simulation
from mova_engine.rehearsal.simulated_streams import StepTimeline

# Parts of a prediction that a dry run does not include.
_CODECS = ("codecs", "text encoder", "video codec", "audio codec")


def without_codecs(predicted: Mapping[str, float]) -> dict[str, int]:
    """The parts of a memory prediction (bytes by part) that a dry run counts too: all but codecs and text encoder."""
    return {name: round(size) for name, size in predicted.items() if not name.startswith(_CODECS)}


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one group of ranks, and the bytes that this rank sends in them."""

    kind: str
    group: str
    ranks: int
    calls: int
    bytes_sent: int


@dataclass(frozen=True)
class Rehearsal:
    """One step of one rank, run on fake tensors. Bytes are those of one device; seconds are measured on this machine.

    command: "train" or "sample". recipe: its name, or the checkpoint that is sampled. mesh: as text. shapes, dtypes: of
    the step's inputs; and for each component the number and dtype of its weights. peak_memory_bytes: by purpose, at the
    peak. largest_tensors: at the peak, as text. predicted_memory_bytes: by the cost model's parts.
    host_memory_bytes, predicted_host_memory_bytes: the same for the host, if layers are streamed. copied: number and
    bytes of the layers copied to the device. host_waits: as of `HostWaits.counts`. simulation: the checks of all ranks;
    None for one rank. timeline: the step on simulated streams; None unless it is timed.
    """

    command: str
    recipe: str
    device: str
    machine: str
    world_size: int
    mesh: str
    height: int
    width: int
    frames: int
    video_tokens: int
    audio_tokens: int
    clips_per_step: int
    operators: dict[str, str]
    shapes: dict[str, list[int]]
    dtypes: dict[str, str]
    collectives: tuple[Collective, ...]
    host_waits: dict[str, int]
    peak_memory_bytes: dict[str, int]
    largest_tensors: tuple[str, ...]
    predicted_memory_bytes: dict[str, int]
    host_memory_bytes: dict[str, int]
    predicted_host_memory_bytes: dict[str, int]
    copied: dict[str, int]
    operations: int
    seconds: dict[str, float]
    simulation: Simulation | None = None
    timeline: StepTimeline | None = None

    @property
    def peak(self) -> int:
        """Counted peak memory in bytes."""
        return sum(self.peak_memory_bytes.values())

    @property
    def predicted(self) -> int:
        """Predicted peak memory in bytes."""
        return sum(self.predicted_memory_bytes.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        found = tuple(Collective(**each) for each in values["collectives"])
        others = {"collectives": found, "largest_tensors": tuple(values["largest_tensors"])}
        if values["simulation"] is not None:
            others["simulation"] = Simulation.from_dict(values["simulation"])
        if values["timeline"] is not None:
            others["timeline"] = StepTimeline.from_dict(values["timeline"])
        return cls(**{f.name: values[f.name] for f in fields(cls)} | others)

    def __str__(self) -> str:
        """The report as text: the run, memory, collectives, shapes, operators."""
        clip = f"{self.frames} frames of {self.height}x{self.width}, {self.video_tokens} + {self.audio_tokens} tokens"
        lines = [
            f"rehearsed, not measured: {self.command} {self.recipe} as rank 0 of {self.world_size} on {self.machine}",
            f"mesh {self.mesh}; {clip}; clips a step {self.clips_per_step}",
            f"{self.operations} operations in {sum(self.seconds.values()):.1f} s",
            "",
            f"{'peak memory by part':<40}{'GB':>9}",
            *(f"  {name:<38}{size / 1e9:>9.3f}" for name, size in self.peak_memory_bytes.items()),
            f"{'in all':<40}{self.peak / 1e9:>9.3f}",
            f"{'predicted by the cost model':<40}{self.predicted / 1e9:>9.3f}  ({self._deviation()})",
            *(f"  {name:<38}{size / 1e9:>9.3f}" for name, size in self.predicted_memory_bytes.items()),
        ]
        if self.host_memory_bytes:
            lines += ["", f"{'peak of the host by part':<40}{'GB':>9}"]
            lines += [f"  {name:<38}{size / 1e9:>9.3f}" for name, size in self.host_memory_bytes.items()]
            predicted = sum(self.predicted_host_memory_bytes.values())
            lines += [f"{'predicted by the cost model':<40}{predicted / 1e9:>9.3f}"]
        if self.copied:
            copies, size, unforeseen = (self.copied[name] for name in ("copies", "bytes", "unforeseen"))
            lines += ["", f"{copies} layers copied to the device, {size / 1e9:.1f} GB, {unforeseen} of them unforeseen"]
        if self.collectives:
            lines += ["", f"{'collective':<16}{'group':<20}{'ranks':>7}{'calls':>7}{'GB sent':>10}"]
            lines += [
                f"{x.kind:<16}{x.group:<20}{x.ranks:>7}{x.calls:>7}{x.bytes_sent / 1e9:>10.3f}"
                for x in self.collectives
            ]
        if self.timeline is not None:
            lines += ["", str(self.timeline)]
        if self.host_waits:
            lines += ["", f"the host waits for the device {sum(self.host_waits.values())} times:"]
            lines += [f"  {name}: {count}" for name, count in self.host_waits.items()]
        if self.simulation is not None:
            lines += ["", str(self.simulation)]
        lines += ["", "largest tensors at the peak", *(f"  {line}" for line in self.largest_tensors)]
        lines += ["", "shapes"]
        lines += [f"  {name:<38}{list(shape)} {self.dtypes[name]}" for name, shape in self.shapes.items()]
        lines += ["", "operators: " + ", ".join(f"{name}={choice}" for name, choice in self.operators.items())]
        return "\n".join(lines)

    def _deviation(self) -> str:
        return f"{(self.predicted / self.peak - 1) * 100:+.1f}% of what was counted" if self.peak else "nothing counted"
