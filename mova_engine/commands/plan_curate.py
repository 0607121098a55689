"""`mova plan curate HOURS`: what curating so many hours of film takes."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mova_engine.config.command import Command
from mova_engine.config.curation_recipes import DEFAULT_CURATION, load_curation
from mova_engine.config.limits import check, check_least
from mova_engine.errors import require_package, run_cli
from mova_engine.predict.curation_cost import CurationPlan, CurationRates, assumed_rates, plan_curation

ABOUT = """Predict what curating many hours of film takes: core-days, GPU-days, disk, and what is kept.

From measured seconds a clip: those of a table, of one core of a CPU, or of the folder of your own pilot run
(--measured), which knows your machines, your films and what your filters drop.
"""


@dataclass(frozen=True, kw_only=True)
class PlanCurateConfig:
    """How much film, and on what."""

    hours: float = field(kw_only=False)
    """Hours of film."""
    recipe: str = DEFAULT_CURATION
    """Recipe of mova curate, whose filters say what is measured; of a pilot run that run's own are taken."""
    measured: Path | None = None
    """Folder of a pilot run of mova curate, from whose seconds and shares everything is predicted."""
    kept: float | None = None
    """Share of the clips that is kept; default: what is published of the recipe."""
    cores: int = 1
    """CPU cores at work."""
    gpus: int = 0
    """GPUs at work."""
    write: Literal["none", "mp4"] = "none"
    """Whether kept clips are written."""
    captions: bool = False
    """Whether a model on a GPU describes the kept clips."""
    json: bool = False
    """Print the plan as JSON."""

    def __post_init__(self) -> None:
        check_least(self, "", hours=0, cores=1, gpus=0)
        check(self.kept is None or 0 < self.kept <= 1, f"kept is a share of more than 0 up to 1, got {self.kept}")
        pilot = self.measured is not None
        check(not pilot or self.kept is None, "--measured OUT tells what is kept: leave out --kept")
        check(not pilot or not self.captions, "a pilot run's captions are no part of its timings: leave out --captions")


PLAN_CURATE = Command("mova plan curate", PlanCurateConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan."""
    config = PLAN_CURATE.parse(argv)
    if config is None:
        return 0
    plan = plan_curation(config.hours, _rates(config), write=config.write != "none")
    days = None if plan.gpu_days and not config.gpus else plan.days(config.cores, config.gpus)
    if config.json:
        sys.stdout.write(json.dumps({**asdict(plan), "days": days}, indent=1) + "\n")
        return 0
    sys.stdout.writelines(f"{line}\n" for line in _told(plan, config, days))
    return 0


def _rates(config: PlanCurateConfig) -> CurationRates:
    write = config.write != "none"
    # Imported late, so that help is instant.
    if config.measured is not None:
        require_package("pyarrow", "mova plan curate --measured")
        from mova_engine.curation.pilot_rates import pilot_rates

        return pilot_rates(config.measured, write=write)
    from mova_engine.curation.clip_prints import PRINTS, is_late
    from mova_engine.curation.judging import Judging

    recipe = load_curation(config.recipe, raw=["films"], out="out")
    judge = Judging.of(recipe).judge
    # What waits for all clips comes last, and what it waits for is their fingerprints.
    ordered = sorted(judge.filters, key=is_late)
    filters = [(*each.scores, PRINTS) if is_late(each) else each.scores for each in ordered]
    seconds = recipe.shape.frames / recipe.shape.fps
    name = Path(config.recipe).stem
    return assumed_rates(name, filters, judge.scores, seconds, kept=config.kept, write=write, captions=config.captions)


def _told(plan: CurationPlan, config: PlanCurateConfig, lasts: float | None) -> list[str]:
    core, gpu = sum(plan.core_days.values()), sum(plan.gpu_days.values())
    lines = [
        f"prediction, not a measurement, from {plan.rates.source}",
        f"{plan.hours:g} h of film -> {plan.clips:,.0f} clips of {plan.rates.clip_seconds:.2f} s -> "
        f"{plan.kept:,.0f} kept ({plan.rates.kept:.1%}, {plan.kept_hours:,.0f} h)",
        f"{'stage':18} {'clips':>14} {'s/clip':>9} {'core-days':>11} {'GPU-days':>11}",
    ]
    for each in plan.rates.stages:
        days = [f"{found[each.name]:,.1f}" if each.name in found else "" for found in (plan.core_days, plan.gpu_days)]
        clips = f"{plan.clips * each.share:,.0f}"
        lines.append(f"{each.name:18} {clips:>14} {each.seconds:9.3f} {days[0]:>11} {days[1]:>11}")
    lines.append(f"{'all':18} {'':14} {'':9} {core:11,.1f} {gpu:11,.1f}")
    disk = f"ledger and table {_size(plan.ledger_bytes)}"
    lines.append(f"disk: {disk}{f', written clips {_size(plan.written_bytes)}' if plan.written_bytes else ''}")
    if lasts is None:
        lines.append("days: --gpus, as a stage runs on GPUs")
    elif config.cores > 1 or config.gpus:
        lines.append(f"days on {config.cores} cores and {config.gpus} GPUs: {lasts:,.1f}")
    return lines


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


if __name__ == "__main__":
    run_cli(main)
