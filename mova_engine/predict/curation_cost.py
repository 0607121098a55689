"""What curating many hours of film takes: core-days, GPU-days, disk and what is kept, from seconds a clip.

The seconds come from a table of measurements (curation_costs.yaml), or from the timings of a pilot run of one's own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from mova_engine.errors import MovaError

DAY = 86400.0


@dataclass(frozen=True)
class CurationStage:
    """A step of the work. seconds: of a clip, on one core or one GPU; share: of all clips on which it runs."""

    name: str
    seconds: float
    share: float
    gpu: bool = False


@dataclass(frozen=True)
class CurationRates:
    """What an hour of film comes to. clips: that it gives; clip_seconds: length of one; kept: share of the clips.

    ledger_bytes, table_bytes: on disk of each clip; written_bytes: of each kept clip if clips are written. source:
    where all of this is from, in words.
    """

    clips: float
    clip_seconds: float
    kept: float
    stages: tuple[CurationStage, ...]
    ledger_bytes: float
    table_bytes: float
    written_bytes: float
    source: str


@dataclass(frozen=True)
class CurationPlan:
    """What `hours` of film take. core_days, gpu_days: by stage, in the stages' order; bytes on disk."""

    hours: float
    rates: CurationRates
    core_days: Mapping[str, float]
    gpu_days: Mapping[str, float]
    clips: float
    kept: float
    ledger_bytes: float
    written_bytes: float

    @property
    def kept_hours(self) -> float:
        """Hours of the clips that are kept."""
        return self.kept * self.rates.clip_seconds / 3600

    def days(self, cores: int, gpus: int) -> float:
        """Days on so many cores and GPUs, which work at the same time. MovaError where GPUs are needed and there are
        none.
        """
        core, gpu = sum(self.core_days.values()), sum(self.gpu_days.values())
        if gpu and not gpus:
            raise MovaError("a stage runs on GPUs: give --gpus, how many there are")
        return max(core / cores, gpu / gpus if gpus else 0.0)


def plan_curation(hours: float, rates: CurationRates, *, write: bool) -> CurationPlan:
    """The plan of `hours` hours of film. write: whether kept clips are written."""
    clips = hours * rates.clips
    days = {each.name: clips * each.share * each.seconds / DAY for each in rates.stages}
    kept = clips * rates.kept
    return CurationPlan(
        hours,
        rates,
        {each.name: days[each.name] for each in rates.stages if not each.gpu},
        {each.name: days[each.name] for each in rates.stages if each.gpu},
        clips,
        kept,
        clips * (rates.ledger_bytes + rates.table_bytes),
        kept * rates.written_bytes if write else 0.0,
    )


@cache
def known_costs() -> Mapping[str, Any]:
    """The table of measurements, as it stands in curation_costs.yaml."""
    text = resources.files("mova_engine.predict").joinpath("curation_costs.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def assumed_rates(
    recipe: str,
    filters: Sequence[Sequence[str]],
    also: Sequence[str],
    clip_seconds: float,
    *,
    kept: float | None,
    write: bool,
    captions: bool,
) -> CurationRates:
    """Rates before there is a run. filters: the scores (or other steps of the table) that each filter needs, in order;
    also: those that are measured of what is left. kept: share of the clips that is kept; None: what is published of the
    recipe. All of the film becomes clips, and each filter drops the same share.

    MovaError for a score whose seconds are not in the table, and a recipe of which nothing is published.
    """
    costs = known_costs()
    if kept is None:
        if recipe not in costs["kept"]:
            known = ", ".join(costs["kept"])
            raise MovaError(f"nothing is published of what {recipe} keeps ({known}): give --kept, or --measured OUT")
        kept = float(costs["kept"][recipe])
    seconds, passed = costs["seconds"], kept ** (1 / len(filters)) if filters else 1.0
    stages, share, paid = [CurationStage("cut", seconds["cut"], 1.0)], 1.0, set[str]()
    for scores in (*filters, also):
        wanted = [score for score in scores if score not in paid]
        if wanted and not paid:
            stages.append(CurationStage("decode", seconds["decode"], share))
        for score in wanted:
            if score not in seconds:
                raise MovaError(f"the table has no seconds of the score {score}: give --measured OUT of a pilot run")
            stages.append(CurationStage(score, seconds[score], share))
        paid |= set(wanted)
        share *= passed
    if captions:
        stages.append(CurationStage("captions", costs["captions"]["seconds"], kept, gpu=True))
    if write:
        stages.append(CurationStage("write", seconds["write"], kept))
    size = costs["bytes"]
    source = f"{costs['machine']}, {costs['date']}; each filter is taken to drop the same share"
    return CurationRates(
        3600 / clip_seconds, clip_seconds, kept, tuple(stages), size["ledger"], size["table"], size["written"], source
    )
