"""How several processes share the work: the settings that training and sampling share."""

import math
from dataclasses import dataclass

from mova_engine.errors import MovaError


@dataclass(frozen=True)
class ParallelConfig:
    """How the processes that torchrun starts share the work."""

    context_parallel: int = 1
    """Processes over which a clip's video tokens are split; the rest of them works on other clips."""
    ulysses: int | None = None
    """Of context_parallel, how many exchange attention heads; the others pass keys round in a ring. Default: as many
    as divide the heads.
    """
    cfg: int = 1
    """In sampling: processes that share guidance's evaluations of a step."""
    shard: bool = False
    """Divide the weights, their gradients and the optimizer's state among the processes (FSDP2); else each has all."""
    replicate: int = 1
    """With shard: so many groups of processes hold a whole copy each, so that gathering stays within a group."""
    timeout: float = 600.0
    """Seconds after which a process that waits for another in vain gives up."""

    def __post_init__(self) -> None:
        for name in ("context_parallel", "ulysses", "cfg", "replicate", "timeout"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < math.inf:
                raise MovaError(f"parallel.{name} must be at least 1, got {value}")
        if self.replicate > 1 and not self.shard:
            raise MovaError("parallel.replicate concerns sharded weights: give parallel.shard too")
