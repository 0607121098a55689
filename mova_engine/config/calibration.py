"""What is calibrated for the step cache, as typed and validated settings: the command line fills them in."""

from dataclasses import dataclass, field, fields
from pathlib import Path

from mova_engine.config.command import Command, section
from mova_engine.config.enhance import EnhanceConfig
from mova_engine.config.limits import check, check_least
from mova_engine.config.memory import MODES, MemoryMode
from mova_engine.config.parallel import ParallelConfig
from mova_engine.config.sample import REFUSED_MEMORY, SampleConfig
from mova_engine.config.shorthand import Shorthand

# Options of sampling that a calibration does not take: it makes clips as a whole, in one process, without a cache.
_UNUSED = (
    *("video", "audio", "retake", "window", "retake_of", "extend", "seconds", "overlap", "given", "video_passes"),
    *("audio_alone", "cache", "cache_file", "overwrite", "parallel", "enhance"),
)

ABOUT = """Measure what it costs to leave the video tower out of steps, for `mova sample --cache`.

Takes the options of the sampling run that it is for, and makes clips with them; a handful of prompts is enough.
"""


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(SampleConfig):
    """A calibration: the sampling run that it is for, and what is measured."""

    out: Path = field()
    """The file to write; mova sample looks for step_cache.json in the folder of --checkpoint."""
    longest: int = 4
    """The most steps after one of the video tower that are measured, and so that a plan leaves out in a row."""

    def __post_init__(self) -> None:
        groups = {"parallel": ParallelConfig(), "enhance": EnhanceConfig()}
        defaults = {each.name: each.default for each in fields(self)} | groups
        for name in _UNUSED:
            wanted = f"--{name.replace('_', '-')} is not of a calibration: leave it out"
            check(getattr(self, name) == defaults[name], wanted)
        super().__post_init__()
        check(self.solver != "heun", "solver heun takes no step cache: calibrate euler or unipc")
        check_least(self, "", longest=1)


CALIBRATE = Command(
    "mova calibrate",
    CalibrateConfig,
    ABOUT,
    hidden=(
        *REFUSED_MEMORY,
        *(f"--{name.replace('_', '-')}" for name in _UNUSED),
        *(f"--enhance.{each.name.replace('_', '-')}" for each in fields(EnhanceConfig)),
        *(f"--parallel.{each.name.replace('_', '-')}" for each in fields(ParallelConfig)),
    ),
    shorthands=(Shorthand("memory", MODES["inference"], MemoryMode, section("Memory")),),
)
