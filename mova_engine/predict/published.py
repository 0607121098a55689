"""Published step times of MOVA, as runs that the planner can predict. All are runs of the reference implementation."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import get_preset
from mova_engine.errors import MovaError
from mova_engine.predict.job import IMPLEMENTATIONS, Job, Layout, PlannedRun, precision_of, unsharded

CALIBRATED = "910a2"


@dataclass(frozen=True)
class PublishedRow:
    """A measured step. fitted: the cost model may learn from it. memory: bytes per device as published, (least, most).

    optimizer: the measured step includes the optimizer's update.
    """

    name: str
    hardware: str
    run: PlannedRun
    seconds: float
    fitted: bool = False
    memory: tuple[float, float] | None = None
    optimizer: bool = True


def _row(name: str, hardware: str, preset: str, task: str, layout: Layout, seconds: float, **more: Any) -> PublishedRow:
    job = Job(get_preset(preset), task, online=True)
    policy = MemoryConfig(expert="host") if task == "inference" else MemoryConfig(checkpointing="full")
    layout = layout if task == "lora" else unsharded(layout)
    return PublishedRow(name, hardware, PlannedRun(job, layout, policy, IMPLEMENTATIONS["reference"]), seconds, **more)


_CP4, _CP8, _LORA = Layout(ulysses=4), Layout(ring=2, ulysses=4), Layout(dp_shard=2, ulysses=4)
ROWS = (
    _row("inference 360p, 1 x 910B", CALIBRATED, "mova-360p", "inference", Layout(), 37.0, fitted=True),
    _row("inference 360p, 4 x 910B", CALIBRATED, "mova-360p", "inference", _CP4, 12.3, fitted=True),
    _row("inference 360p, 8 x 910B", CALIBRATED, "mova-360p", "inference", _CP8, 7.6),
    _row("inference 720p, 8 x 910B", CALIBRATED, "mova-720p", "inference", _CP8, 60.6),
    _row("LoRA 360p, 8 x 910A2", CALIBRATED, "mova-360p", "lora", _LORA, 34.1, memory=(40e9, 50e9)),
    _row("inference 360p, 1 x H100", "h100-80gb", "mova-360p", "inference", Layout(), 9.0),
    _row("LoRA 360p, 8 x H100", "h100-80gb", "mova-360p", "lora", _LORA, 22.2, memory=(50e9, 50e9)),
)


def measured_here(folder: Path) -> list[PublishedRow]:
    """Rows of this project's own result files of training steps on a CPU (`bench step`); ours, forward and backward.

    Raises MovaError for a folder that cannot be read.
    """
    rows = []
    if not folder.is_dir():
        raise MovaError(f"there is no folder {folder} of result files")
    try:
        for file in sorted(folder.glob("*.json")):
            result = json.loads(file.read_text(encoding="utf-8"))
            if result.get("kind") != "step" or result["circumstances"]["device"] != "cpu":
                continue
            precision = precision_of(result["dtype"])
            # A step measured in turns with a baseline shares the caches with it: those alone are comparable.
            for row in (row for row in result["rows"] if "sides" not in row):
                job = Job(get_preset(row["model"]), "full", precision, clips=row["batch"])
                run = PlannedRun(job, Layout(), MemoryConfig(checkpointing=row["checkpointing"]))
                name = f"{row['model']} {precision}, {result['circumstances']['threads']} CPU threads"
                rows.append(PublishedRow(name, "cpu", run, row["step_s"], optimizer=False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MovaError(f"result files in {folder} cannot be read: {type(error).__name__}: {error}") from error
    return rows
