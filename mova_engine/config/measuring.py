"""The options of commands that measure clips: weights, convention, device."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MeasuringOptions:
    """By what scores are computed."""

    weights: Path | None = None
    """Folder of networks' weights; `mova eval weights FOLDER` tells what it holds."""
    accept_noncommercial: bool = False
    """Use weights whose licence forbids commercial use."""
    convention: Literal["mova", "av-benchmark", "corrected"] = "corrected"
    """Whose definitions scores follow, where they know several."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda or npu."""
