"""`python -m mova_engine.plan MODEL --task T --hardware H --devices N`: predict memory, time and traffic; recommend."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from mova_engine.config.model import PRESETS, get_preset
from mova_engine.errors import CommandParser, MovaError, counted, run_cli, suggest
from mova_engine.plan import measured, report
from mova_engine.predict.calibrate import calibrated
from mova_engine.predict.hardware import Hardware, hardware_names
from mova_engine.predict.job import (
    IMPLEMENTATIONS,
    TASKS,
    ImplementationCost,
    Job,
    Layout,
    PlannedRun,
    Policy,
    get_implementation,
    unsharded,
)
from mova_engine.predict.options import OPTIONS, PLAIN
from mova_engine.predict.published import measured_here
from mova_engine.predict.search import CHOICES, Plan, best, leanest, plan, rescue, smallest_change

RESULTS = Path("benchmarks/results")
MOST = 10_000_000
_OTHERS = 4


def main(argv: list[str] | None = None) -> int:
    """Print a plan, or with --validate how well the cost model does. Status 1 where nothing fits."""
    args = _parser().parse_args(argv)
    if args.validate:
        here = RESULTS if args.results is None and RESULTS.is_dir() else args.results
        found = measured.validation(measured_here(here) if here else ())
        _put(args, found, lambda: measured.report(found))
        return 0
    layout = _mesh(args.mesh) if args.mesh else None
    devices = args.devices if args.devices is not None else layout.world if layout else 1
    _check_sizes(vars(args) | {"devices": devices})
    job, hardware, implementation = _job(args), calibrated(args.hardware), get_implementation(args.implementation)
    fixed = _policy(args.policy, hardware, job.task, implementation)
    # A mesh does not say whether weights are shared: in training they are, in sampling they are not, unless the policy
    # wants it otherwise.
    if layout and (fixed.get("frozen") == "fp8" if job.training else fixed.get("weights") != "host"):
        layout = unsharded(layout)
    if layout:
        _check(job, layout, fixed, implementation, devices)
    plans = best(job, devices, hardware, implementation, layout, fixed)
    head = [*report.headline(job, hardware, devices, implementation.name), ""]
    args.standing = None
    if args.recipe and job.training and implementation.name == "ours":
        from mova_engine.plan.recipe import recipe_as_it_stands

        args.standing = recipe_as_it_stands(args.recipe, devices, hardware)
        head += [args.standing, ""]
    if plans:
        _show_plans(args, head, plans, layout, fixed)
        return 0
    return _show_misfit(args, head, job, hardware, implementation, devices, layout, fixed)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m mova_engine.plan", description=__doc__)
    parser.add_argument("model", nargs="?", help=f"{', '.join(PRESETS)}; or give --recipe")
    parser.add_argument("--recipe", help="a training recipe: its model, precision, task, clips per step, average")
    parser.add_argument("--task", help=f"{', '.join(TASKS)} (default full)")
    for name in ("frames", "height", "width"):
        parser.add_argument(f"--{name}", type=int, help=f"another clip's {name}")
    parser.add_argument("--fps", type=float, help="another clip's frame rate")
    parser.add_argument(
        "--hardware", default="h100-80gb", help=f"{', '.join(hardware_names())}, or a .yaml or .json file of that form"
    )
    parser.add_argument("--devices", type=int, help="how many (default: the mesh's, else 1)")
    parser.add_argument("--clips", type=int, help="clips of an optimizer step, or sampled at once, over all devices")
    parser.add_argument("--mesh", help="dp_replicate x dp_shard x ring x ulysses, e.g. 1x2x1x4 (default: recommended)")
    settings = "; ".join(f"{name}: {', '.join(values)}" for name, values in CHOICES.items())
    parser.add_argument("--policy", default="", help=f"fix settings, e.g. checkpointing=full,inputs=host. {settings}")
    parser.add_argument("--precision", help="bf16 or fp32 (default bf16)")
    parser.add_argument("--lora-rank", type=int, help="default: the recipe's, else 16")
    parser.add_argument("--online", action="store_true", help="clips are encoded while training, not read from a cache")
    parser.add_argument("--implementation", default="ours", help=f"{', '.join(IMPLEMENTATIONS)} (default ours)")
    parser.add_argument("--json", action="store_true", help="plain values, SI units")
    parser.add_argument("--validate", action="store_true", help="predictions beside published and measured steps")
    parser.add_argument("--results", type=Path, help=f"for --validate: a folder of result files (default {RESULTS})")
    return parser


def _job(args: argparse.Namespace) -> Job:
    if (args.model is None) == (args.recipe is None):
        raise MovaError(f"name a model ({', '.join(PRESETS)}) or a recipe (--recipe), one of the two")
    job = _job_of(args.recipe) if args.recipe else Job(get_preset(args.model))
    given = {name: getattr(args, name) for name in ("task", "precision", "clips") if getattr(args, name) is not None}
    other = {name: getattr(args, name) for name in ("frames", "height", "width", "fps")}
    clip = replace(job.model.clip, **{name: value for name, value in other.items() if value is not None})
    if given.get("task") == "inference" and args.recipe:
        given.setdefault("clips", None)
    model = replace(job.model, clip=clip)
    if args.lora_rank is not None:
        given["lora_rank"] = args.lora_rank
    return replace(job, model=model, online=args.online or job.online, **given)


def _job_of(recipe: str) -> Job:
    # Reading recipes takes as long as planning: a plan by model does without.
    from mova_engine.plan.recipe import job_of

    return job_of(recipe)


def _policy(text: str, hardware: Hardware, task: str, implementation: ImplementationCost) -> dict[str, str]:
    """`name=value,...` as settings. MovaError for an unknown one, and for one that no option turns on."""
    fixed = {}
    for setting in filter(None, text.split(",")):
        name, _, value = (part.strip() for part in setting.partition("="))
        if name not in CHOICES:
            raise MovaError(f"unknown policy '{name}'.{suggest(name, CHOICES)} Known: {', '.join(CHOICES)}")
        Policy(**{name: value})
        if value == "fp8" and "fp8" not in hardware.peak:
            raise MovaError(f"{hardware.name} has no fp8 arithmetic; leave frozen=fp8 out")
        if value == "host" and hardware.host_bandwidth is None:
            raise MovaError(f"{hardware.name} is the host itself: {name}=host has no meaning there")
        if implementation.name == "ours" and value != getattr(PLAIN, name) and (name, value) not in OPTIONS[task]:
            known = ", ".join(f"{field}={setting}" for field, setting in OPTIONS[task])
            raise MovaError(f"no option turns on {name}={value} for task {task}; there are options for {known}")
        fixed[name] = value
    return fixed


def _check_sizes(given: dict) -> None:
    """MovaError for a whole number that no plan is made for: the search would not end, the figures overflow."""
    for name in ("devices", "clips", "frames", "height", "width", "lora_rank"):
        option = "--" + name.replace("_", "-")
        if given[name] is not None and not 1 <= given[name] <= MOST:
            raise MovaError(f"{option} must be between 1 and {MOST}, got {given[name]}")


def _mesh(text: str) -> Layout:
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdigit() for size in sizes):
        raise MovaError(f"--mesh takes four sizes, dp_replicate x dp_shard x ring x ulysses, as 1x2x1x4; got '{text}'")
    names = ("dp_replicate", "dp_shard", "ring", "ulysses")
    return Layout(**dict(zip(names, map(int, sizes), strict=True)))


def _check(job: Job, layout: Layout, fixed: dict[str, str], implementation: ImplementationCost, devices: int) -> None:
    """MovaError where a mesh that was asked for cannot run."""
    if layout.world != devices:
        raise MovaError(f"the mesh {layout} has {layout.world} devices, not {devices}")
    PlannedRun(job, layout, Policy(**{"checkpointing": implementation.checkpointing[-1], **fixed}), implementation)


def _show_plans(
    args: argparse.Namespace, head: list[str], plans: list[Plan], layout: Layout | None, fixed: dict[str, str]
) -> None:
    chosen = plans[0]
    run, hardware = chosen.run, chosen.hardware
    checkpointing = run.implementation.checkpointing
    default = "selective" if "selective" in checkpointing else checkpointing[0]
    plain = plan(replace(run, policy=Policy(**{"checkpointing": default, **fixed})), hardware)
    least = smallest_change(run.job, run.layout, hardware, run.implementation, fixed)
    verdict = "fits" if plain.fits else "does not fit"
    lines = [
        f"plain ({report.policy_words(plain.run.policy, run.job)}) on this mesh: "
        f"{report.gb(plain.memory.total)} GB, {verdict}"
    ]
    if not plain.fits:
        lines.append(
            f"smallest change that fits: {report.words(least.changes)} "
            f"({report.gb(least.memory.total)} GB, {report.seconds(least.prediction.seconds)} s)"
        )
    rest = plans[1 : 1 + _OTHERS]
    found = {
        "recommended": report.facts(chosen, args.recipe),
        "plain": report.facts(plain, args.recipe),
        "smallest_change": report.facts(least, args.recipe),
        "others": [report.facts(one, args.recipe) for one in rest],
        "recipe_as_it_stands": args.standing,
    }
    parts = [*head, *lines, "", "planned:" if layout else "recommended:", *report.summary(chosen)]
    parts += report.how_to_run(chosen, args.recipe)
    for table in [*report.tables(chosen), *([report.others(rest)] if rest else [])]:
        parts += ["", table]
    _put(args, found, lambda: parts)


def _show_misfit(
    args: argparse.Namespace,
    head: list[str],
    job: Job,
    hardware: Hardware,
    implementation: ImplementationCost,
    devices: int,
    layout: Layout | None,
    fixed: dict[str, str],
) -> int:
    closest = leanest(job, devices, hardware, implementation, layout, fixed)
    if closest is None:
        if fixed and leanest(job, devices, hardware, implementation, layout):
            settings = ", ".join(f"{name}={value}" for name, value in fixed.items())
            raise MovaError(
                f"no option turns on {settings} on {counted(devices, 'device')}: weights shared among devices "
                "cannot be in fp8, and only those can be streamed; leave a setting out or change --devices"
            )
        raise MovaError(f"no mesh of {devices} devices can run this: {job.clips} clips do not divide over any")
    # First what was asked for and could be left free, then other devices and clips.
    freed = best(job, devices, hardware, implementation)[:1] if fixed or layout else []
    found = freed or rescue(job, devices, hardware, implementation)
    lines = [
        f"nothing fits: the leanest needs {report.gb(closest.memory.total)} GB of {report.gb(hardware.budget)} "
        f"({report.words(closest.changes)}; {closest.run.layout})",
    ]
    planned = leanest(job, devices, hardware, implementation, layout, fixed, planned=True)
    if planned.fits:
        lines.append(
            f"would fit, but cannot be run yet, since no option turns it on: {report.words(planned.changes)} "
            f"({report.gb(planned.memory.total)} GB)"
        )
    for one in found:
        clip = one.run.job.model.clip
        what = f"{one.run.layout.world} devices" if one.run.layout.world != devices else f"{clip.frames} frames"
        what = "with a free choice of mesh and policy" if freed else what
        what += f", {report.words(one.changes)}"
        lines += [f"would fit: {what}", *report.summary(one), *report.how_to_run(one, args.recipe)]
    facts = {
        "fits": False,
        "leanest": report.facts(closest, args.recipe),
        "planned": report.facts(planned) if planned.fits else None,
        "would_fit": [report.facts(one, args.recipe) for one in found],
        "recipe_as_it_stands": args.standing,
    }
    _put(args, facts, lambda: [*head, *lines])
    return 1


def _put(args: argparse.Namespace, found: dict, parts) -> None:
    if args.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        report.show(parts())


if __name__ == "__main__":
    run_cli(main)
