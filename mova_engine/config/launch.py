"""The option that starts a command in several processes of this machine, and its rehearsal's."""

from dataclasses import dataclass

from mova_engine.config.limits import check
from mova_engine.config.rehearsal import RehearsalOptions


@dataclass(frozen=True)
class LaunchOptions(RehearsalOptions):
    """How many processes a run of the trainer or the sampler has, or its rehearsal."""

    processes: int = 1
    """Start the command in so many processes of this machine, which share the work as torchrun's do: for small models
    on the cores of a CPU, and for the cards of one machine. Several machines need torchrun.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.processes >= 1, f"processes must be at least 1, got {self.processes}")
        check(
            not self.dry_run or self.processes == 1,
            "--processes starts a run; of which size a --dry-run is, --world-size says",
        )
