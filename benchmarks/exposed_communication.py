"""`python -m benchmarks.exposed_communication`: how long devices wait for collectives, simulated.

Each run is a dry run of the trainer at full size with its clock (`mova train --dry-run --clock`): the engine's own
operations and collectives on simulated streams. A run of the same command at the same commit replaces the one before.
Reports of other commits are added with --take.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.command import Command
from mova_engine.config.recipes import TRAIN
from mova_engine.errors import MovaError, run_cli
from mova_engine.files.results import read_result, write_result
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.step_time import predict
from mova_engine.rehearsal.simulated_streams import StepTimeline
from mova_engine.train.assembly import mesh_of
from mova_engine.train.dry_run import planned
from mova_engine.train.model_setup import largest_clip, model_config

RESULT = Path(__file__).parent / "results" / "rehearsal" / "exposed-communication.json"
# Layers of the video tower of all runs.
LAYERS = 40
KIND = "exposed communication, simulated"
_LORA = (
    "--recipe lora --device npu --assume 910a2 --world-size 8 --parallel.context-parallel 4 --parallel.shard "
    "--global-batch-size 2 --clock 910a2"
)
_PHASE3 = "--recipe joint-phase3 --device npu --assume 910a2 --world-size 1024 --clock 910a2 --memory.prefetch"
RUNS = {
    "lora": _LORA,
    "lora-weights": f"{_LORA} --memory.prefetch weights",
    "phase3": f"{_PHASE3} unit",
    "phase3-weights": f"{_PHASE3} weights",
    "phase3-all": f"{_PHASE3} all",
}


@dataclass(frozen=True, kw_only=True)
class ExposedConfig:
    """Which runs, and where their figures go."""

    only: str | None = None
    """One of the runs, such as phase3-all; default: all of them."""
    out: Path = RESULT
    """The result file: read, and written after each run."""
    take: Path | None = None
    """With --only: run nothing; add the report that the run's command, with --json, printed at --commit."""
    commit: str | None = None
    """With --take: the commit that printed it."""
    table: bool = False
    """Run none; print the table of docs/rehearsal.md."""


EXPOSED = Command("python -m benchmarks.exposed_communication", ExposedConfig, "Simulate what collectives cost.")


def planned_waits(name: str) -> float:
    """Seconds of a run's step in which the planner has devices wait for collectives."""
    config, options = TRAIN.parse_both([*shlex.split(RUNS[name]), "--dry-run"])
    assert config is not None and options.clock is not None, "the runs are dry runs with a clock"
    sizes, shape = largest_clip(config, model_config(config)), mesh_of(config, options.world_size)
    return predict(planned(config, sizes, shape), calibrated(options.clock)).parts["communication"]


def rehearse(name: str) -> dict[str, Any]:
    """The report of a run. MovaError where it fails."""
    argv = [sys.executable, "-m", "mova_engine", "train", *shlex.split(RUNS[name]), "--dry-run", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise MovaError(f"the run {name} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def row_of(name: str, report: dict[str, Any], commit: str) -> dict[str, Any]:
    """What the result file has of a report."""
    return {
        "run": name,
        "command": f"mova train {RUNS[name]} --dry-run",
        "commit": commit,
        "mesh": report["mesh"],
        "peak_memory_bytes": sum(report["peak_memory_bytes"].values()),
        "bytes_sent": sum(each["bytes_sent"] for each in report["collectives"]),
        "timeline": report["timeline"],
        # By the planner as it is now.
        "planned_waits_s": round(planned_waits(name), 3),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: seconds in which the device waits, by kind of collective, and of a layer in ms."""
    kinds = ("all_to_all", "send", "all_reduce", "all_gather", "reduce_scatter")
    heads = ("run", "commit", "step s", "waiting s", *(f"{kind}, alone / exposed" for kind in kinds), "ms a layer")
    lines = [heads, ("---", "---", *["---:"] * (len(heads) - 2))]
    for row in rows:
        found = StepTimeline.from_dict(row["timeline"])
        cells = []
        for kind in kinds:
            alone, exposed = (
                sum(seconds for name, seconds in part.items() if name.startswith(f"{kind} "))
                for part in (found.collectives, found.exposed)
            )
            cells.append(f"{alone:.2f} / {exposed:.2f}" if alone else "")
        each = f"{1000 * found.waiting / LAYERS:.1f}"
        lines.append((row["run"], row["commit"][:7], f"{found.step:.2f}", f"{found.waiting:.2f}", *cells, each))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Do as the command line asks; returns 0."""
    config = EXPOSED.parse(sys.argv[1:] if argv is None else argv)
    if config is None:
        return 0
    rows = read_result(config.out)["rows"] if config.out.is_file() else []
    if config.table:
        print(table(rows))
        return 0
    if config.only is not None and config.only not in RUNS:
        raise MovaError(f"--only {config.only}: the runs are {', '.join(RUNS)}")
    if config.take is not None and (config.only is None or config.commit is None):
        raise MovaError("--take: say with --only of which run it is the report, and with --commit of which commit")
    here = circumstances(get_backend("cpu"))
    for name in RUNS if config.only is None else (config.only,):
        report = rehearse(name) if config.take is None else json.loads(config.take.read_text(encoding="utf-8"))
        row = row_of(name, report, config.commit if config.commit is not None else here["commit"])
        rows = [each for each in rows if (each["run"], each["commit"]) != (name, row["commit"])] + [row]
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_result(config.out, KIND, here, rows=sorted(rows, key=lambda each: each["run"]))
        print(f"{name}\n{StepTimeline.from_dict(row['timeline'])}\nplanned: {row['planned_waits_s']:.2f} s of waiting")
    return 0


if __name__ == "__main__":
    run_cli(main)
