"""What each measurement takes: the settings of `mova bench NAME`."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.bench import BASELINE
from mova_engine.config.command import Command, section
from mova_engine.config.limits import check, check_least, check_threads
from mova_engine.config.memory import MemoryConfig

_DTYPE = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What all measurements take."""

    device: str = "cpu"
    """cpu, cuda or npu."""
    dtype: _DTYPE = "float32"
    """What is computed in."""
    threads: int | None = None
    """CPU threads; default: as torch chooses."""
    json: Path | None = None
    """Write the result file here, e.g. benchmarks/results/NAME.json."""

    def __post_init__(self) -> None:
        check_threads(self.threads)


@dataclass(frozen=True, kw_only=True)
class OperatorsConfig(BenchConfig):
    """Every implementation of every operator that the device can run."""

    op: tuple[str, ...] = ()
    """Operators to measure; default: all."""
    seconds: float = 2.0
    """Time spent on each case and direction."""
    baseline: str = BASELINE
    """MODULE:ATTRIBUTE of a table of formulations to compare with, or none."""
    compile: bool = False
    """Also torch.compile of the references."""
    choose: bool = False
    """Time what may serve each operator, and write the fastest where models look it up (the folder MOVA_TILES)."""


@dataclass(frozen=True, kw_only=True)
class EncodingConfig(BenchConfig):
    """A training step of processes that share a clip, by who encodes."""

    processes: tuple[int, ...] = (2, 4)
    """How many share a clip; each number in turn."""
    model: str = "bench-mid"
    """Whose step is taken."""
    codec_width: int = 8
    """Channels of the video encoder's first layer."""
    pairs: int = 5
    """Interleaved runs of each, of as many steps, at least 2."""


@dataclass(frozen=True, kw_only=True)
class ComparedConfig(BenchConfig):
    """What every comparison with the baseline takes."""

    pairs: int = 30
    """Interleaved runs of each side."""
    seconds: float = 400.0
    """Begin no further pair after this long, but run 5."""
    baseline: str = BASELINE
    """MODULE:ATTRIBUTE of a table of formulations to compare with, or none."""
    baseline_dtype: _DTYPE | None = None
    """What the baseline computes in; default: as dtype."""
    one_process: bool = False
    """The baseline in the engine's process and allocator, on a CPU too."""
    compile: bool = False
    """Also torch.compile of the references."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", pairs=1, seconds=0)


@dataclass(frozen=True, kw_only=True)
class ChainConfig(ComparedConfig):
    """The norms, rotations and gates of one block."""

    rows: int | None = None
    """Tokens; default: MOVA's, on a CPU bench-mid's and a long audio's."""
    width: int | None = None
    """Channels, with rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", rows=1, width=1)
        check((self.rows is None) == (self.width is None), "--rows and --width come together")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(ComparedConfig):
    """A part of a model."""

    model: str | None = None
    """nano, bench-mid, mova-360p or mova-720p; default: mova-360p, on a CPU bench-mid, marked as scaled."""


@dataclass(frozen=True, kw_only=True)
class StackConfig(ModelConfig):
    """All video blocks, gradients into one reused buffer."""

    blocks: int | None = None
    """How many; default: as many as the model has."""
    memory: Annotated[MemoryConfig, section("Memory")] = field(
        default_factory=lambda: MemoryConfig(checkpointing="selective")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", blocks=1)
        _check_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class StepConfig(ModelConfig):
    """Forward and backward of a training step, and where its time goes."""

    batch: int = 1
    """Clips of the step."""
    lora_rank: int | None = None
    """Train adapters of this rank, the weights frozen."""
    memory: Annotated[MemoryConfig, section("Memory")] = field(default_factory=MemoryConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, "", batch=1, lora_rank=1)
        _check_memory(self.memory)


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Tables of result files."""

    files: tuple[Path, ...] = field(default=(), kw_only=False)
    """Result files; default: benchmarks/results/*.json."""
    out: Path | None = None
    """Write the page here, and the plot beside it; default: print the page."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Two result files side by side, with a mark where they cannot be compared."""

    before: Path = field(kw_only=False)
    """A result file."""
    after: Path = field(kw_only=False)
    """Another of the same kind."""


def _check_memory(memory: MemoryConfig) -> None:
    """What is measured here is on one device and in one dtype."""
    for name, value in memory.changes(MemoryConfig(memory.checkpointing)).items():
        check(False, f"memory.{name} {value}: only memory.checkpointing is measured here")


# What is measured: the settings of each, and what it measures where several have the same.
_MEASURED: dict[str, tuple[type, str]] = {
    "operators": (OperatorsConfig, ""),
    "encode": (EncodingConfig, ""),
    "chain": (ChainConfig, ""),
    "block": (ModelConfig, "One video block."),
    "audio-block": (ModelConfig, "One audio block."),
    "bridge": (ModelConfig, "One bridge layer, both directions."),
    "stack": (StackConfig, ""),
    "denoise": (ModelConfig, "One denoising step of two evaluations."),
    "step": (StepConfig, ""),
}
# What reads result files instead.
_READ: dict[str, tuple[type, str]] = {"report": (ReportConfig, ""), "compare": (CompareConfig, "")}
# Settings of memory that need several devices or are no matter of speed.
_UNMEASURED = tuple(f"--memory.{each.name}" for each in fields(MemoryConfig) if each.name != "checkpointing")
MEASUREMENTS: dict[str, Command] = {
    name: Command(f"mova bench {name}", kind, about or kind.__doc__ or "", hidden=_UNMEASURED)
    for name, (kind, about) in (_MEASURED | _READ).items()
}
