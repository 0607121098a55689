"""Settings of matrix products in fp8 in training."""

from dataclasses import dataclass
from typing import Literal

from mova_engine.config.limits import check, check_least

# The operator of a trained layer with such products, in `mova_engine.ops.table`.
FP8_TRAINED = "fp8_trained_linear"


@dataclass(frozen=True)
class Fp8Settings:
    """Products of trained linear layers in fp8 (docs/fp8.md)."""

    products: Literal["none", "device", "emulated"] = "none"
    """Whether linear layers of blocks and bridge multiply numbers of 8 bits, forward and backward, instead of those of
    `dtype`; weights stay as they are. device: by the device's fp8 products. emulated: the same numbers multiplied in
    float32, on any device, slowly: to see what it does to a training.
    """
    slack: float = 0.1
    """The most by which a layer's output or one of its gradients may be off what `dtype` gives, root mean square over
    that of the latter; a layer that is further off stays in `dtype`.
    """
    check_every: int = 500
    """Steps between comparisons of all layers, which are computed in `dtype` in these steps; each layer is compared
    before it is first used in any case. 0: then alone.
    """

    def __post_init__(self) -> None:
        check_least(self, "fp8.", check_every=0)
        check(0 < self.slack < 1, f"fp8.slack must lie between 0 and 1, got {self.slack}")

    @property
    def used(self) -> bool:
        """Whether any layer may compute in fp8."""
        return self.products != "none"

    @property
    def choices(self) -> dict[str, str]:
        """Implementations of operators that follow from the settings."""
        return {FP8_TRAINED: "reference"} if self.products == "emulated" else {}

    def check_run(self, dtype: str, adapters: bool) -> None:
        """MovaError where a run cannot have these settings. adapters: they are trained, beside frozen weights."""
        if not self.used:
            return
        check(
            not adapters,
            f"fp8.products {self.products} is for weights that are trained; those beside adapters are frozen: "
            "--memory.frozen fp8 holds and multiplies them in fp8",
        )
        check(
            self.products != "device" or dtype == "bfloat16",
            f"fp8.products device gives bfloat16, and dtype is {dtype}: give --dtype bfloat16",
        )
