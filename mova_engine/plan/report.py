"""Formats plans: tables on a terminal, plain lines elsewhere, plain values for JSON."""

import io
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from mova_engine.config.memory import PLAIN, MemoryConfig
from mova_engine.plan.command_line import command, lines, unavailable
from mova_engine.predict.hardware import DISK, Hardware
from mova_engine.predict.job import OURS, Job
from mova_engine.predict.operator_cost import bound
from mova_engine.predict.operator_cost import words as operator_words
from mova_engine.predict.search import Plan
from mova_engine.predict.step_traffic import context_traffic, step_traffic

LABEL = "prediction of a cost model, not a measurement"
_WIDTH = 112
# Shares below this are not shown.
_SHOWN = 0.005
_WORDS = {
    ("checkpointing", "none"): "no checkpointing",
    ("checkpointing", "selective"): "selective checkpointing",
    ("checkpointing", "out"): "selective checkpointing that keeps attention's output only",
    ("checkpointing", "full"): "full checkpointing",
    ("frozen", "fp8"): "frozen weights in fp8",
    ("frozen", "int8"): "frozen weights in int8",
    ("frozen", "nf4"): "frozen weights in nf4",
    ("inputs", "host"): "block inputs on the host",
    ("saved", "host"): "kept attention on the host",
    ("chunking", "rows"): "feed-forward in chunks of tokens",
    ("weights", "host"): "weights on the host",
    ("weights", "files"): "weights in their files",
    ("optimizer", "host"): "masters, gradients and moments on the host",
    ("gathered", "step"): "weights gathered once a step",
    ("gradients", "step"): "gradients summed over the devices once a step",
    ("prefetch", "weights"): "weights gathered a layer ahead",
    ("prefetch", "all"): "weights gathered and gradients summed beside a whole layer",
    ("expert", "host"): "the waiting video expert on the host",
    ("idle", "device"): "all parts on the device all the time",
    ("vae", "tiles"): "the video codec in tiles",
    ("idle", "files"): "parts read again for each stage",
}
_TASKS = {"full": "full training", "inference": "one denoising step"}


def words(changed: dict[str, str]) -> str:
    """Changes of a policy in words."""
    return "; ".join(_WORDS[item] for item in changed.items()) or "the plain policy"


def policy_words(policy: MemoryConfig, job: Job) -> str:
    """A whole policy as text."""
    changed = policy.changes(PLAIN[job.task])
    parts = [_WORDS["checkpointing", policy.checkpointing]] if job.training else []
    precision = f"{job.precision} activations"
    if job.task == "full":
        precision += ", float32 masters" if job.precision == "bf16" else ""
    else:
        kind = job.base if policy.frozen == "activations" else policy.frozen
        precision += f", weights in {job.precision if kind == 'activations' else kind}"
    rest = {name: value for name, value in changed.items() if name not in ("checkpointing", "frozen")}
    return "; ".join([*parts, precision, words(rest) if rest else "nothing offloaded"])


def headline(job: Job, hardware: Hardware, devices: int, implementation: str) -> list[str]:
    """The first lines: job, device, operators."""
    clip, task = job.model.clip, _TASKS.get(job.task, f"LoRA r{job.lora_rank}")
    if job.task == "inference":
        task += f" of {job.evaluations} evaluations"
    elif job.components == ("audio_dit",):
        task += " of the audio tower alone"
    task += ", products in fp8" if job.fp8 else ""
    encoding = "" if not job.training else ", clips encoded online" if job.online else ", cached latents"
    return [
        f"{job.model.name}, {task}, {job.precision}{encoding}: {clip.frames} frames of {clip.height}x{clip.width}, "
        f"{clip.video_tokens} video and {clip.audio_tokens} audio tokens",
        f"{devices} x {hardware.title}, {gb(hardware.budget)} of {gb(hardware.memory)} GB usable; "
        f"implementation: {implementation}",
        *_limits(hardware),
        *([f"{operator_words(hardware, job)} ({hardware.machine})"] if implementation == OURS else []),
        f"Every figure below is a {LABEL}.",
    ]


def _limits(hardware: Hardware) -> list[str]:
    """What the host gives, where it is limited."""
    if hardware.host_budget is None or hardware.host_bandwidth is None:
        return []
    given = "" if hardware.disk_bandwidth != DISK else " (assumed: one NVMe drive; --disk says another)"
    return [
        f"host: {gb(hardware.host_budget)} of {gb(hardware.host_memory or 0)} GB usable; files are read at "
        f"{gb(hardware.disk_bandwidth)} GB/s{given}"
    ]


def tables(plan: Plan) -> list[Table]:
    """Memory, time and traffic of a plan."""
    prediction, run = plan.prediction, plan.run
    memory = _table("memory per device (predicted)", "GB", "of usable")
    for name, value in plan.memory.device.items():
        memory.add_row(name, gb(value), f"{value / plan.hardware.budget:.0%}")
    work = sum(plan.memory.device.values())
    memory.add_row("in all", gb(work), f"{work / plan.hardware.budget:.0%}")
    if plan.memory.total > work:
        peak = f"most, in the stage: {plan.memory.peak}"
        memory.add_row(peak, gb(plan.memory.total), f"{plan.memory.total / plan.hardware.budget:.0%}")
    for name, value in plan.memory.host.items():
        memory.add_row(f"on the host: {name}", gb(value), "")
    if plan.hardware.host_budget is not None and plan.memory.host:
        memory.add_row("on the host, at most", gb(plan.memory.on_host), "")
    time = _table("time per step (predicted)", "s", "share")
    for name, value in prediction.parts.items():
        if value >= _SHOWN * prediction.seconds:
            time.add_row(name, seconds(value), f"{value / prediction.seconds:.0%}")
    time.add_row("in all", seconds(prediction.seconds), "")
    for name, value in prediction.hidden.items():
        time.add_row(f"hidden behind computation: {name}", seconds(value), "")
    total, once = step_traffic(run), context_traffic(run)
    traffic = _table("traffic per rank and step (predicted)", "GB sent")
    rows = {
        "Ulysses all-to-all": total.all_to_all,
        "ring of keys and values": total.ring,
        "bridge's all-reduce": total.reduce,
        "context parallelism, one clip or evaluation": once.context if once.context else 0,
        "FSDP gathers": total.gather,
        "FSDP scatters": total.scatter,
        "gradients between replicas": total.replicas,
        "Muon's whole matrices and their rows": total.matrices,
        "to the host": total.to_host,
        "from the host": total.from_host,
        "from files": total.from_files,
    }
    for name, value in rows.items():
        if value > 0:
            traffic.add_row(name, f"{value / 1e9:.3g}")
    return [memory, time] + ([traffic] if traffic.row_count else [])


def summary(plan: Plan) -> list[str]:
    """The recommendation in lines."""
    run, prediction = plan.run, plan.prediction
    each = plan.seconds_per_clip * run.layout.world
    clips = f"{prediction.clips} clip{'s' if prediction.clips > 1 else ''}"
    if run.micro_batches > 1:
        clips += f" ({run.micro_batches} micro-batches)"
    return [
        f"  mesh: {run.layout}",
        f"  policy: {policy_words(run.policy, run.job)}",
        f"  step: {seconds(prediction.seconds)} s for {clips}, {seconds(each)} device-seconds a clip, "
        f"MFU {prediction.mfu:.1%}, HFU {prediction.hfu:.1%}, {gb(plan.memory.total)} GB per device",
    ]


def how_to_run(plan: Plan, recipe: str | None = None) -> list[str]:
    """Lines with the command that runs a plan, or the reason why there is none."""
    found = command(plan, recipe)
    if found is None:
        return [f"  cannot be run: {unavailable(plan.run)}"]
    return ["  run it with:", *lines(found)]


def others(plans: Iterable[Plan]) -> Table:
    """A table of other meshes, each with its best policy."""
    table = _table("other meshes (predicted)", "s a step", "clips", "GB", "MFU")
    table.add_column("policy")
    for plan in plans:
        table.add_row(
            str(plan.run.layout),
            seconds(plan.prediction.seconds),
            str(plan.prediction.clips),
            gb(plan.memory.total),
            f"{plan.prediction.mfu:.0%}",
            words(plan.changes),
        )
    return table


def facts(plan: Plan, recipe: str | None = None) -> dict[str, Any]:
    """A plan as plain values, in SI units. command: its words; None if no command runs it."""
    prediction = plan.prediction
    return {
        "label": LABEL,
        "command": command(plan, recipe),
        "mesh": asdict(plan.run.layout),
        "policy": asdict(plan.run.policy),
        "operators": bound(plan.hardware.machine, plan.run.job.training, plan.run.job.precision)
        if plan.run.implementation.name == OURS
        else None,
        "fits": plan.fits,
        "memory_bytes": {**plan.memory.device, "in all": sum(plan.memory.device.values())},
        "host_bytes": plan.memory.host,
        "most_host_bytes": plan.memory.on_host,
        "bytes_by_stage": plan.memory.stages,
        "usable_bytes": plan.hardware.budget,
        "seconds": {**prediction.parts, "in all": prediction.seconds},
        "hidden_seconds": prediction.hidden,
        "clips": prediction.clips,
        "mfu": prediction.mfu,
        "hfu": prediction.hfu,
        "traffic_bytes": asdict(step_traffic(plan.run)),
    }


def show(parts: Iterable[str | Table]) -> None:
    """Print lines and tables: styled on a terminal, plain and of fixed width elsewhere."""
    if sys.stdout.isatty():
        console = Console(highlight=False)
        _print(console, parts)
        return
    held = io.StringIO()
    _print(Console(file=held, width=_WIDTH, highlight=False, color_system=None), parts)
    sys.stdout.write("\n".join(line.rstrip() for line in held.getvalue().split("\n")))


def _print(console: Console, parts: Iterable[str | Table]) -> None:
    for part in parts:
        if isinstance(part, str) and len(part) > console.width:
            indent = " " * (len(part) - len(part.lstrip()) + 4)
            part = textwrap.fill(part, console.width, subsequent_indent=indent, break_on_hyphens=False)
        console.print(part, markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def gb(value: float) -> str:
    """Bytes as text in GB."""
    return f"{value / 1e9:.1f}" if value >= 5e7 else f"{value / 1e9:.2g}"


def seconds(value: float) -> str:
    """Seconds as text, with more digits for small values."""
    return f"{value:.2f}" if value >= 0.05 else f"{value:.2g}"
