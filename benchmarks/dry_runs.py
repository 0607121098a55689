"""`python -m benchmarks.dry_runs`: every recipe and the sampler, rehearsed on devices that are not here.

Each run is the command line's own, `mova train --dry-run` or `mova sample --dry-run`, in a process of its own, one
after the other. What is in the result file already is not run again: an interrupted campaign goes on where it was.
"""

import itertools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.backend import get_backend
from mova_engine.backend.circumstances import circumstances
from mova_engine.config.command import Command
from mova_engine.config.recipes import TRAIN
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError, run_cli
from mova_engine.files.results import read_result, write_result
from mova_engine.inference.dry_run import predict_sampling
from mova_engine.predict.memory_use import Memory
from mova_engine.rehearsal.rehearse import assumed
from mova_engine.rehearsal.result import without_codecs
from mova_engine.train.dry_run import predict_training

RESULT = Path(__file__).parent / "results" / "rehearsal" / "dry-runs.json"
KIND = "dry runs"
DEVICES, SIZES = ("cuda", "npu"), (1, 8, 64, 1024)
RECIPES = ("joint-phase3", "joint-phase2", "joint-phase1", "lora", "audio-pretrain", "nano", "lora-nano")
# Of a row: what was counted on the host where layers are streamed, and what was predicted.
_HOST = ("host_memory_bytes", "predicted_host_memory_bytes")
# How processes share the sampling of clips: two branches of guidance, four ranks to each, and a clip for each eight.
_SAMPLED = {1: "", 8: " --parallel.cfg 2 --parallel.context-parallel 4"}
# Beside the grid, where a recipe's own mesh or batch does not fit so many processes: the same with one that does, and
# other ways to save memory.
BESIDE = (
    "train --recipe joint-phase3 --parallel.context-parallel 8 --world-size 8",
    "train --recipe joint-phase3 --memory.checkpointing selective --world-size 64",
    "train --recipe lora --global-batch-size 8 --world-size 8",
    "train --recipe lora --global-batch-size 1 --parallel.context-parallel 8 --parallel.shard --world-size 8",
    "train --recipe lora --memory.frozen fp8 --memory.inputs host --world-size 1",
    "train --recipe lora --memory.weights host --memory.checkpointing full --memory.inputs host --world-size 1",
    "train --recipe lora --memory.weights files --memory.checkpointing full --memory.inputs host --world-size 1",
    "train --recipe lora --memory.weights host --memory.checkpointing selective --memory.inputs host "
    "--memory.saved host --world-size 1",
    "train --recipe lora --memory.weights host --memory.checkpointing full --memory.inputs host --memory.chunking rows "
    "--clip.height 720 --clip.width 1280 --world-size 1",
    "sample --checkpoint mova-360p --prompt clip --memory.weights host --world-size 1",
    "sample --checkpoint mova-720p --prompt clip --memory.weights host --sequential-guidance --world-size 1",
    "sample --checkpoint mova-360p --prompt clip --memory.weights files --world-size 1",
    # Held out: the planner's constants were not set by these.
    "train --recipe joint-phase2 --clip.frames 97 --parallel.context-parallel 4 --world-size 16",
    "train --recipe joint-phase3 --world-size 512",
    "train --recipe lora --clip.height 720 --clip.width 1280 --memory.weights host --memory.checkpointing full "
    "--memory.inputs host --world-size 1",
    "sample --checkpoint mova-720p --prompt clip --clip.frames 97 --memory.weights files --world-size 1",
)


@dataclass(frozen=True, kw_only=True)
class DryRunsConfig:
    """Which runs, and where their figures go."""

    out: Path = RESULT
    """The result file: read, and written after each run."""
    only: str | None = None
    """Of the runs those whose command has this text."""
    list: bool = False
    """Print the commands that are still to be run, and run none."""
    predict: bool = False
    """Run none; predict the memory of those in the file again, by the planner as it is now."""
    table: bool = False
    """Run none; print the tables of docs/rehearsal.md."""


DRY_RUNS = Command("python -m benchmarks.dry_runs", DryRunsConfig, "Rehearse every recipe and the sampler.")


def commands() -> Iterator[str]:
    """All runs: recipes and sampler on each device and number of processes, then those beside them."""
    for device, size in itertools.product(DEVICES, SIZES):
        for recipe in RECIPES:
            yield f"train --recipe {recipe} --world-size {size} --device {device}"
        for model in ("mova-360p", "mova-720p"):
            shared = _SAMPLED[min(size, 8)] + (f" --count {size // 8}" if size > 8 else "")
            yield f"sample --checkpoint {model} --prompt clip{shared} --world-size {size} --device {device}"
    for words, device in itertools.product(BESIDE, DEVICES):
        yield f"{words} --device {device}"


def rehearse(command: str) -> dict[str, Any]:
    """Run one; returns its row."""
    words = shlex.split(command)
    started = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        argv = [sys.executable, "-m", "mova_engine", *words, "--dry-run", "--json"]
        child = subprocess.Popen(argv, stdout=out, stderr=errors)
        # Of the command and of the child in which it rehearses.
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        printed, said = out.read().decode(), errors.read().decode()
    row: dict[str, Any] = {
        "command": command,
        "wall_s": round(time.perf_counter() - started, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "resident_bytes": used.ru_maxrss * 1024,
    }
    if child.returncode == 0:
        found = json.loads(printed)
        kept = ("machine", "mesh", "clips_per_step", "operations", "collectives", "peak_memory_bytes")
        streamed = (*_HOST, "copied") if found["copied"] else ()
        return row | {name: found[name] for name in (*kept, "predicted_memory_bytes", *streamed)}
    refusals = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if child.returncode != 2 or len(refusals) != 1:
        raise MovaError(f"`{command}` ended with status {child.returncode}: {said[-2000:]}")
    return row | {"refusal": refusals[0]}


def predicted(command: str) -> Memory:
    """What the planner says of a run today."""
    name, *words = shlex.split(command)
    of_command, predict = (TRAIN, predict_training) if name == "train" else (SAMPLE, predict_sampling)
    config, options = of_command.parse_both([*words, "--dry-run"])
    return predict(config, assumed(config.device, options), options.world_size)


def deviation(
    row: dict[str, Any], counted: str = "peak_memory_bytes", planned: str = "predicted_memory_bytes"
) -> float:
    """The planner's memory above what was counted, as a share of it."""
    return sum(row[planned].values()) / sum(row[counted].values()) - 1


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    words = shlex.split(row["command"])
    device, size = words[words.index("--device") + 1], words[words.index("--world-size") + 1]
    shown = row["command"].replace(f" --world-size {size}", "").replace(f" --device {device}", "")
    shown = shown.replace(" --prompt clip", "").replace(" --recipe", "").replace(" --checkpoint", "")
    seconds, resident = f"{row['cpu_s']:.0f}", f"{row['resident_bytes'] / 1e9:.2f}"
    if "refusal" in row:
        return shown, device, size, seconds, resident, "refused", "", "", "", ""
    peak = sum(row["peak_memory_bytes"].values())
    calls, sent = (sum(x[name] for x in row["collectives"]) for name in ("calls", "bytes_sent"))
    host = ""
    if _HOST[0] in row:
        host = f"{sum(row[_HOST[0]].values()) / 1e9:.2f} ({deviation(row, *_HOST) * 100:+.1f} %)"
    figures = f"{peak / 1e9:.2f}", f"{deviation(row) * 100:+.1f} %", host, str(calls), f"{sent / 1e9:.2f}"
    return shown, device, size, seconds, resident, *figures


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was rehearsed, then why others were refused."""
    order = {command: place for place, command in enumerate(commands())}
    rows = sorted(rows, key=lambda row: order.get(row["command"], len(order)))
    head = ("run", "device", "ranks", "CPU s", "resident GB", "peak GB", "planner", "host GB", "collectives", "GB sent")
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * 8), *(_line(_cells(row)) for row in rows)]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if "refusal" in row:
            shown, _, size, *_ = _cells(row)
            reasons.setdefault(row["refusal"], []).append(f"`{shown}` on {size}")
    said = [f"* {', '.join(dict.fromkeys(runs))}: {reason}" for reason, runs in reasons.items()]
    return "\n".join([*lines, "", "Refused:", "", *said]) if said else "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a result file; none where there is no file."""
    return read_result(path)["rows"] if path.is_file() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Do as the command line asks; returns 0. MovaError for a run that neither ends well nor is refused in one line."""
    config = DRY_RUNS.parse(sys.argv[1:] if argv is None else argv)
    if config is None:
        return 0
    rows = rows_of(config.out)
    if config.table:
        print(table(rows))
        return 0
    if config.predict:
        for row in (row for row in rows if "refusal" not in row):
            now = predicted(row["command"])
            row["predicted_memory_bytes"] = without_codecs(now.device)
            if _HOST[1] in row:
                row[_HOST[1]] = without_codecs(now.host)
        _write(config.out, rows)
        return 0
    done = {row["command"] for row in rows}
    for command in commands():
        if command in done or (config.only is not None and config.only not in command):
            continue
        print(command, flush=True)
        if not config.list:
            here = circumstances(get_backend("cpu"))
            row = rehearse(command)
            rows.append(row | {name: here[name] for name in ("torch", "commit", "date")})
            _write(config.out, rows)
    return 0


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result(path, KIND, circumstances(get_backend("cpu")), rows=rows)


if __name__ == "__main__":
    run_cli(main)
