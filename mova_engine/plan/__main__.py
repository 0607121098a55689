"""`mova plan MODEL --task T --hardware H --devices N`: predict memory, time and traffic, and recommend how to run."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mova_engine.config.byte_sizes import parse_bytes, parse_rate
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section, spelled, split_names
from mova_engine.config.memory import PLAIN, MemoryConfig
from mova_engine.config.model import PRESETS, get_preset
from mova_engine.errors import MovaError, counted, run_cli, suggest
from mova_engine.plan import measured, report
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import Hardware
from mova_engine.predict.job import (
    OURS,
    ImplementationCost,
    Job,
    KeptVideo,
    Layout,
    PlannedRun,
    get_implementation,
    precision_of,
    unsharded,
)
from mova_engine.predict.published import measured_here
from mova_engine.predict.remedies import remedies
from mova_engine.predict.search import CHOICES, Plan, best, leanest, plan, rescue, smallest_change

RESULTS = Path("benchmarks/results")
MOST = 10_000_000
_OTHERS = 4


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to plan."""

    model: str | None = field(default=None, kw_only=False)
    """nano, bench-mid, mova-360p or mova-720p; or give a recipe."""
    recipe: str | None = None
    """A training recipe: its model, dtype, task, clips per step, average."""
    task: Literal["full", "lora", "inference"] | None = None
    """Training of all weights, of adapters, or a denoising step; default: full."""
    hardware: str = "h100-80gb"
    """A card of the engine's list, or a .yaml or .json file of that form."""
    vram: str | None = None
    """The most of a card's memory to use, such as 12GB or 12GiB; default: the card's."""
    ram: str | None = None
    """The host's memory, likewise; default: not limited."""
    disk: str | None = None
    """How fast files are read, such as 3GB/s; default: what hardware.toml says, 6GB/s."""
    packages: Annotated[str | None, spelled("--with")] = None
    """What is installed there to serve operators, as flash-attn-2,apex; default: what hardware.toml says."""
    devices: int | None = None
    """How many; default: the mesh's, else 1."""
    clips: int | None = None
    """Clips of an optimizer step, or sampled at once, over all devices."""
    mesh: str | None = None
    """dp_replicate x dp_shard x ring x ulysses, e.g. 1x2x1x4; default: recommended."""
    memory: dict[str, str] = field(default_factory=dict)
    """Settings to keep as they are, e.g. `--memory.checkpointing full --memory.inputs host`; default: recommended."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the model computes in; default: the recipe's, else bfloat16."""
    lora_rank: int | None = None
    """Default: the recipe's, else 16."""
    stored: Literal["nf4", "int8", "fp8"] | None = None
    """How the model's files hold the weights of layers, as `mova quantise` writes them; default: plain. Of adapters and
    of sampling.
    """
    fp8: bool = False
    """Of training of all weights: products of blocks and bridge in fp8, as mova train --fp8.products device."""
    cache: str | None = None
    """Of sampling: with a step cache, as mova sample --cache 1.6; what it keeps of the video counts."""
    online: bool = False
    """Clips are encoded while training, not read from a cache."""
    implementation: Literal["ours", "reference"] = "ours"
    """Whose implementation is planned for."""
    json: bool = False
    """Print plain values, in SI units."""
    validate: bool = False
    """Print predictions beside published and measured steps."""
    results: Path | None = None
    """For validate: a folder of result files; default: benchmarks/results."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)


PLAN = Command("mova plan", PlanConfig, "Predict memory, time and traffic, and recommend how to run.")


def main(argv: Sequence[str] | None = None) -> int:
    """Print a plan, or with --validate how well the cost model does. Status 1 where nothing fits."""
    args = PLAN.parse(argv)
    if args is None:
        return 0
    if args.validate:
        here = RESULTS if args.results is None and RESULTS.is_dir() else args.results
        found = measured.validation(measured_here(here) if here else ())
        _put(args, found, lambda: measured.report(found))
        return 0
    layout = _mesh(args.mesh) if args.mesh else None
    devices = args.devices if args.devices is not None else layout.world if layout else 1
    _check_sizes(args, devices)
    job, hardware, implementation = _job(args), calibrated(args.hardware), get_implementation(args.implementation)
    if args.packages is not None:
        hardware = hardware.with_packages(split_names(args.packages))
    hardware = hardware.with_limits(
        None if args.vram is None else parse_bytes(args.vram, "--vram"),
        None if args.ram is None else parse_bytes(args.ram, "--ram"),
        None if args.disk is None else parse_rate(args.disk, "--disk"),
    )
    if job.fp8 and "fp8" not in hardware.peak:
        raise MovaError(f"{hardware.name} has no fp8 arithmetic; leave --fp8 and fp8.products out")
    fixed = _memory(args.memory, hardware, job.task, implementation)
    # A mesh does not say whether weights are shared: in training they are, in sampling they are not, unless the policy
    # wants it otherwise.
    if layout and (fixed.get("frozen") == "fp8" if job.training else fixed.get("weights") != "host"):
        layout = unsharded(layout)
    if layout:
        _check(job, layout, fixed, implementation, devices)
    plans = best(job, devices, hardware, implementation, layout, fixed)
    head = [*report.headline(job, hardware, devices, implementation.name), ""]
    standing = None
    if args.recipe and job.training and implementation.name == "ours":
        from mova_engine.plan.recipe import recipe_as_it_stands

        standing = recipe_as_it_stands(args.recipe, devices, hardware)
        head += [standing, ""]
    if plans:
        _show_plans(args, head, standing, plans, layout, fixed)
        return 0
    return _show_misfit(args, head, standing, job, hardware, implementation, devices, layout, fixed)


def _job(args: PlanConfig) -> Job:
    if (args.model is None) == (args.recipe is None):
        raise MovaError(f"name a model ({', '.join(PRESETS)}) or a recipe (--recipe), one of the two")
    job = _job_of(args.recipe) if args.recipe else Job(get_preset(args.model or ""))
    given = {name: getattr(args, name) for name in ("task", "clips") if getattr(args, name) is not None}
    if args.dtype is not None:
        given["precision"] = precision_of(args.dtype)
    if given.get("task") == "inference":
        # As the command has it that runs a plan: guidance's evaluations take turns.
        given["sequential"] = True
    clip = args.clip.over(job.model.clip)
    if given.get("task") == "inference" and args.recipe:
        given.setdefault("clips", None)
    model = replace(job.model, clip=clip)
    if args.cache is not None:
        if given.get("task") != "inference":
            raise MovaError("--cache is of sampling: add --task inference")
        # As the command has it that runs a plan: guidance by the text, with the bridge in all evaluations.
        words = ("--cache", f"{_speedup(args.cache):g}")
        given["kept"] = KeptVideo(job.evaluations, velocities=True, words=words)
    if args.fp8:
        if given.get("task", job.task) != "full":
            raise MovaError("--fp8 is for weights that are trained: of others add --memory.frozen fp8")
        given["fp8"] = True
    if args.lora_rank is not None:
        given["lora_rank"] = args.lora_rank
    if args.stored is not None:
        if given.get("task", job.task) == "full":
            raise MovaError(f"--stored {args.stored}: all weights are trained, which are plain: add --task lora")
        given["base"] = args.stored
    return replace(job, model=model, online=args.online or job.online, **given)


def _speedup(text: str) -> float:
    """The speed-up of a planned cache. Raises MovaError for another text."""
    try:
        speedup = float(text)
    except ValueError:
        speedup = 0.0
    if not 1 < speedup < math.inf:
        raise MovaError(f"--cache is a speed-up above 1, such as 1.6, got '{text}'")
    return speedup


def _job_of(recipe: str) -> Job:
    # Reading recipes takes as long as planning: a plan by model does without.
    from mova_engine.plan.recipe import job_of

    return job_of(recipe)


def _memory(
    settings: dict[str, str], hardware: Hardware, task: str, implementation: ImplementationCost
) -> dict[str, Any]:
    """The memory settings that are not free. MovaError for an unknown one, and for one that cannot be run."""
    fixed: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in CHOICES:
            raise MovaError(f"unknown setting memory.{name}.{suggest(name, CHOICES)} Known: {', '.join(CHOICES)}")
        given: dict[str, Any] = {name: value}
        if MemoryConfig(**given).undecided:
            continue
        if value == "fp8" and "fp8" not in hardware.peak:
            raise MovaError(f"{hardware.name} has no fp8 arithmetic; leave memory.frozen fp8 out")
        if value == "host" and hardware.host_bandwidth is None:
            raise MovaError(f"{hardware.name} is the host itself: memory.{name} host has no meaning there")
        fixed[name] = value
    if implementation.name == "ours":
        # Whether weights are sharded depends on the mesh, which is yet to be chosen: one of both must be possible.
        chosen = replace(PLAIN[task], **fixed)
        refused = [chosen.unavailable(task, sharded) for sharded in (False, True)]
        for name in fixed:
            if all(name in reasons for reasons in refused):
                raise MovaError(f"memory.{name} {fixed[name]}: {refused[0][name]}")
    return fixed


def _check_sizes(args: PlanConfig, devices: int) -> None:
    """MovaError for a whole number that no plan is made for: the search would not end, the figures overflow."""
    clip = {f"clip.{name}": getattr(args.clip, name) for name in ("frames", "height", "width")}
    for name, value in {"devices": devices, "clips": args.clips, "lora-rank": args.lora_rank, **clip}.items():
        if value is not None and not 1 <= value <= MOST:
            raise MovaError(f"--{name} must be between 1 and {MOST}, got {value}")


def _mesh(text: str) -> Layout:
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdigit() for size in sizes):
        raise MovaError(f"--mesh takes four sizes, dp_replicate x dp_shard x ring x ulysses, as 1x2x1x4; got '{text}'")
    names = ("dp_replicate", "dp_shard", "ring", "ulysses")
    return Layout(**dict(zip(names, map(int, sizes), strict=True)))


def _check(job: Job, layout: Layout, fixed: dict[str, Any], implementation: ImplementationCost, devices: int) -> None:
    """MovaError where a mesh that was asked for cannot run."""
    if layout.world != devices:
        raise MovaError(f"the mesh {layout} has {layout.world} devices, not {devices}")
    PlannedRun(job, layout, MemoryConfig(**_over(implementation.checkpointing[-1], fixed)), implementation)


def _over(checkpointing: str, fixed: dict[str, Any]) -> dict[str, Any]:
    """Memory settings with this checkpointing, unless it is fixed."""
    return {"checkpointing": checkpointing, **fixed}


def _show_plans(
    args: PlanConfig,
    head: list[str],
    standing: str | None,
    plans: list[Plan],
    layout: Layout | None,
    fixed: dict[str, Any],
) -> None:
    chosen = plans[0]
    run, hardware = chosen.run, chosen.hardware
    checkpointing = run.implementation.checkpointing
    usual = PLAIN[run.job.task].checkpointing
    default = usual if usual in checkpointing else checkpointing[0]
    plain = plan(replace(run, policy=MemoryConfig(**_over(default, fixed))), hardware)
    least = smallest_change(run.job, run.layout, hardware, run.implementation, fixed)
    verdict = "fits" if plain.fits else "does not fit"
    lines = [
        f"plain ({report.policy_words(plain.run.policy, run.job)}) on this mesh: "
        f"{report.gb(plain.memory.total)} GB, {verdict}"
    ]
    if not plain.fits and least is not None:
        lines.append(
            f"smallest change that fits: {report.words(least.changes)} "
            f"({report.gb(least.memory.total)} GB, {report.seconds(least.prediction.seconds)} s)"
        )
    rest = plans[1 : 1 + _OTHERS]
    found = {
        "recommended": report.facts(chosen, args.recipe),
        "plain": report.facts(plain, args.recipe),
        "smallest_change": report.facts(least, args.recipe) if least is not None else None,
        "others": [report.facts(one, args.recipe) for one in rest],
        "recipe_as_it_stands": standing,
    }
    parts = [*head, *lines, "", "planned:" if layout else "recommended:", *report.summary(chosen)]
    parts += report.how_to_run(chosen, args.recipe)
    for table in [*report.tables(chosen), *([report.others(rest)] if rest else [])]:
        parts += ["", table]
    _put(args, found, lambda: parts)


def _show_misfit(
    args: PlanConfig,
    head: list[str],
    standing: str | None,
    job: Job,
    hardware: Hardware,
    implementation: ImplementationCost,
    devices: int,
    layout: Layout | None,
    fixed: dict[str, Any],
) -> int:
    closest = leanest(job, devices, hardware, implementation, layout, fixed)
    if closest is None:
        if fixed and leanest(job, devices, hardware, implementation, layout):
            settings = ", ".join(f"memory.{name} {value}" for name, value in fixed.items())
            refused = replace(PLAIN[job.task], **fixed).unavailable(job.task, sharded=devices > 1)
            reason = next(iter(refused.values()), "no mesh of so many allows it")
            raise MovaError(
                f"{settings} cannot be run on {counted(devices, 'device')}: {reason}; leave a setting out or change "
                "--devices"
            )
        raise MovaError(f"no mesh of {devices} devices can run this: {job.clips} clips do not divide over any")
    # First what was asked for and could be left free, then other devices and clips.
    freed = best(job, devices, hardware, implementation)[:1] if fixed or layout else []
    limited = implementation.name == OURS and not freed and (args.vram is not None or args.ram is not None)
    found = freed or ([] if limited else rescue(job, devices, hardware, implementation))
    need = f"{report.gb(closest.memory.total)} GB of {report.gb(hardware.budget)}"
    if hardware.host_budget is not None:
        need += f" and {report.gb(closest.memory.on_host)} of the host's {report.gb(hardware.host_budget)}"
    lines = [f"nothing fits: the leanest needs {need} ({report.words(closest.changes)}; {closest.run.layout})"]
    planned = leanest(job, devices, hardware, implementation, layout, fixed, planned=True)
    if planned is not None and planned.fits:
        lines.append(
            f"would fit, but cannot be run yet: {report.words(planned.changes)} ({report.gb(planned.memory.total)} GB)"
        )
    for one in found:
        clip = one.run.job.model.clip
        what = f"{one.run.layout.world} devices" if one.run.layout.world != devices else f"{clip.frames} frames"
        what = "with a free choice of mesh and policy" if freed else what
        what += f", {report.words(one.changes)}"
        lines += [f"would fit: {what}", *report.summary(one), *report.how_to_run(one, args.recipe)]
    for each in remedies(job, closest.run.layout, hardware, fixed) if limited else ():
        found.append(each.plan)
        lines += [f"would fit: {each.words}", *report.summary(each.plan), *report.how_to_run(each.plan, args.recipe)]
    facts = {
        "fits": False,
        "leanest": report.facts(closest, args.recipe),
        "planned": report.facts(planned) if planned is not None and planned.fits else None,
        "would_fit": [report.facts(one, args.recipe) for one in found],
        "recipe_as_it_stands": standing,
    }
    _put(args, facts, lambda: [*head, *lines])
    return 1


def _put(args: PlanConfig, found: dict, parts: Any) -> None:
    if args.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        report.show(parts())


if __name__ == "__main__":
    run_cli(main)
