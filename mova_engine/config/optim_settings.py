"""Settings of the optimizer of a training run."""

from dataclasses import dataclass
from typing import Literal

from mova_engine.config.limits import check, check_least


@dataclass(frozen=True)
class OptimSettings:
    """The optimizer, its learning rates and their course, clipping, moving average."""

    name: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of blocks, bridge layers and adapters, beside AdamW for all other weights. The
    same learning rate and weight decay serve both. A run keeps what it began with.
    """
    lr: float = 1e-5
    """Peak learning rate of the towers."""
    bridge_lr: float | None = None
    """Peak learning rate of the bridge; default: the towers'."""
    lora_plus: float = 1.0
    """Factor on the learning rate of adapters' B (LoRA+, Hayou et al. 2024, which takes 16); 1: that of A."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the moments."""
    momentum: float = 0.95
    """Muon's decay rate of the momentum."""
    newton_schulz_steps: int = 5
    """Newton-Schulz steps by which Muon makes an update orthogonal: fewer are cheaper and less exact."""
    newton_schulz_dtype: Literal["run", "float32", "bfloat16"] = "run"
    """What Newton-Schulz computes in: the run's dtype, or another. bfloat16 is what others take, and several times as
    fast on CPUs that have its arithmetic.
    """
    muon_every: int = 1
    """Steps between Muon's updates of a matrix, which are so many times larger: with 2 half of the matrices move in
    each step, in turns, at half the cost. Their momentum follows every step.
    """
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decay of the weights by the learning rate times this, in both optimizers."""
    moments: Literal["float32", "8bit"] = "float32"
    """How AdamW's two moments are held: in float32, or in 8 bits with a scale for each 256 values, 2.03 bytes a weight
    instead of 8, which rounds them. A run keeps what it began with.
    """
    warmup: int = 0
    """Steps over which the learning rate rises linearly."""
    decay_start: float = 1.0
    """Share of all steps after which the cosine decay begins; 1: none, the rate stays constant."""
    final_lr: float = 0.0
    """Where the cosine decay ends, as a share of the peak."""
    clip: float = 1.0
    """Greatest 2-norm of all gradients together."""
    ema: float = 0.0
    """Decay per step of the weights' moving average, which checkpoints offer to the sampler; 0: none."""
    max_nonfinite: int = 10
    """Steps in a row with a loss or gradient that is not finite, each skipped, after which the run stops."""

    def __post_init__(self) -> None:
        check_least(self, "optim.", lr=0, lora_plus=0, bridge_lr=0, eps=0, weight_decay=0, warmup=0, max_nonfinite=1)
        check_least(self, "optim.", newton_schulz_steps=1, muon_every=1)
        check(0 <= self.momentum < 1, f"optim.momentum must lie in 0..1 (1 excluded), got {self.momentum}")
        check(
            self.name == "adamw" or self.moments == "float32",
            "optim.moments 8bit holds AdamW's two moments: Muon keeps one, in float32; leave one of the two out",
        )
        for name in ("decay_start", "final_lr"):
            check(0 <= getattr(self, name) <= 1, f"optim.{name} must lie in 0..1, got {getattr(self, name)}")
        check(0 <= self.ema < 1, f"optim.ema must lie in 0..1 (1 excluded), got {self.ema}")
        check(all(0 <= beta < 1 for beta in self.betas), f"optim.betas must lie in 0..1, got {self.betas}")
        check(self.clip > 0, f"optim.clip must be positive, got {self.clip}")
