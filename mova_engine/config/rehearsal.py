"""The options that turn a run of the trainer or the sampler into its rehearsal."""

from dataclasses import dataclass
from typing import Annotated, Literal

from mova_engine.config.command import spelled
from mova_engine.config.limits import check


@dataclass(frozen=True)
class RehearsalOptions:
    """Try a step on tensors without data, instead of running."""

    dry_run: bool = False
    """Build the model at full size on tensors without data, run one step as one of --world-size processes on a machine
    that need not be here, and report sizes, memory and traffic. Nothing is read, written or trained.
    """
    world_size: int = 1
    """With --dry-run: processes of the run, of which the first is tried."""
    assume: str | None = None
    """With --dry-run: the machine, such as sm90, sm100 or 910a2; default: sm90 for cuda, 910a2 for npu."""
    packages: Annotated[str | None, spelled("--with")] = None
    """With --dry-run: packages that serve operators there, such as flash-attn-3,apex."""
    stored: Literal["nf4", "int8", "fp8"] | None = None
    """With --dry-run: how the files of a model that is not here hold the weights of layers, as `mova quantise` would
    write them; default: plain. A model folder that is here says so itself.
    """
    clock: str | None = None
    """With --dry-run of training: a device of `mova plan --hardware`, by whose rates computations and collectives are
    timed on simulated streams; the report says how long the device waits for collectives.
    """
    json: bool = False
    """With --dry-run: print the report as one JSON object."""

    def __post_init__(self) -> None:
        check(self.world_size >= 1, f"world_size must be at least 1, got {self.world_size}")
        given = {"--world-size": self.world_size != 1, "--assume": self.assume is not None}
        given |= {"--with": self.packages is not None, "--stored": self.stored is not None, "--json": self.json}
        given |= {"--clock": self.clock is not None}
        for name, used in given.items():
            check(self.dry_run or not used, f"{name} says what is tried by --dry-run: give it too, or leave {name} out")
