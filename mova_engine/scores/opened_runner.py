"""What commands and programs measure by, from a user's options."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mova_engine.config.measuring import MeasuringOptions
from mova_engine.scores.score_runner import ScoreRunner
from mova_engine.scores.weights_folder import WeightsFolder


def open_runner(options: MeasuringOptions, digest: Callable[[Path], str] | None = None) -> ScoreRunner:
    """A runner as the options say. digest: as of `WeightsFolder`. Raises MovaError for a folder that is none and for a
    device that cannot be used.
    """
    weights = WeightsFolder(options.weights, accept_noncommercial=options.accept_noncommercial, digest=digest)
    return ScoreRunner(weights, device=options.device, convention=options.convention)


def share_threads(workers: int) -> None:
    """Share the CPU's cores among so many threads that compute at once, however many torch would take for each."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // workers)))


def told_skipped(skipped: Mapping[str, str], weights: Path | None) -> list[str]:
    """Lines that tell which scores were not measured; one for all that only lack a folder of weights."""
    without = [name for name, reason in skipped.items() if weights is None and reason.startswith("weights missing")]
    lines = [f"not measured without --weights: {', '.join(without)}"] if without else []
    return lines + [f"not measured: {name}: {reason}" for name, reason in skipped.items() if name not in without]
