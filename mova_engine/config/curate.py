"""Settings of curation: which files, how clips are cut of them, what they are judged by, and what is written."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.captions import CaptionSettings
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import section
from mova_engine.config.curate_files import FilmSettings, WrittenSettings
from mova_engine.config.limits import check, check_least
from mova_engine.config.measuring import MeasuringOptions
from mova_engine.config.model import PRESETS, ClipConfig
from mova_engine.config.sound_correction import SoundCorrection

# What is cut where nothing else is said.
MOVA_CLIP = PRESETS["mova-720p"].clip


@dataclass(frozen=True, kw_only=True)
class CutSettings:
    """How clips are cut out of films."""

    unit_seconds: float = 600.0
    """Seconds of a film that one worker decodes in one go."""
    kinds: tuple[Literal["speech-shot", "speech-cuts", "other-shot", "other-cuts"], ...] = (
        "speech-shot",
        "speech-cuts",
        "other-shot",
        "other-cuts",
    )
    """Kinds of clips that are made: with speech or not, of one shot or with cuts."""
    shots: Literal["content", "transitions"] = "content"
    """How shots are told apart: by changes of content, or by TransNetV2's network, which finds dissolves too."""
    bars: Literal["crop", "keep"] = "crop"
    """Black bars around a shot: cut off, or kept."""
    aspect: Literal["crop", "pad", "keep"] = "crop"
    """How pictures get the nearer of the shapes 16:9 and 9:16: cropped, or padded; or that they keep their own."""

    def __post_init__(self) -> None:
        check_least(self, "cut.", unit_seconds=1)
        check(len(self.kinds) > 0, "cut.kinds: name at least one kind of clips")


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How the work is run; none of this changes what comes out."""

    ray_address: str | None = None
    """Of a Ray cluster that runs already, whose machines see RAW and OUT under the same paths: auto, or HOST:PORT."""
    worker_memory: float | None = None
    """GiB of memory above which a worker is ended and its film tried again; default: its share of the machine's."""
    worker_units: int = 200
    """Units after which a worker is replaced by a fresh one."""
    stalled_minutes: float = 60.0
    """Minutes that one step of a unit may take before its worker is ended."""

    def __post_init__(self) -> None:
        check_least(self, "engines.", worker_memory=0.1, worker_units=1, stalled_minutes=0.1)


@dataclass(frozen=True)
class _Raw:
    raw: tuple[Path, ...]
    """Folders of films, or published lists of them; or several."""


@dataclass(frozen=True, kw_only=True)
class CurateConfig(MeasuringOptions, _Raw):
    """Which files become which clips."""

    out: Path
    """Folder to write, or to go on with."""
    name: str = ""
    """The recipe's name, for reports."""
    engine: Literal["processes", "ray"] = "processes"
    """What runs the work: processes of this machine, or Ray."""
    workers: int = max(1, os.cpu_count() or 1)
    """Units of films that are worked on at once, each by one thread."""
    measure: Literal["needed", "all"] = "needed"
    """Whether a clip that a filter drops is measured further."""
    order: Path | None = None
    """File with the filters' names in the order in which they are tried, a line each; default: the recipe's order."""
    most_failed: float = 0.05
    """Share of units, and of kept clips, that may fail; with more, the exit status is 1."""
    retry: bool = False
    """Try units again that failed in an earlier run, and write shards anew that lack clips."""
    write: Literal["none", "mp4", "shards"] = "none"
    """What becomes of accepted clips: a list that training reads from the films, mp4 files, or tar shards of those."""
    filters: dict[str, str] = field(default_factory=dict[str, str])
    """Conditions by name, all of which a clip must meet: "silence <= 0.5 and (desync <= 0.5 or imagebind >= 0.2)"."""
    marks: dict[str, str] = field(default_factory=dict[str, str])
    """Conditions by name that are noted for each clip, and drop none."""
    also: tuple[str, ...] = ()
    """Scores that are measured beside those that the filters need."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    cut: Annotated[CutSettings, section("Cutting")] = field(default_factory=CutSettings)
    engines: Annotated[EngineSettings, section("Engines")] = field(default_factory=EngineSettings)
    sound: Annotated[SoundCorrection, section("Sound")] = field(default_factory=SoundCorrection)
    captions: Annotated[CaptionSettings, section("Captions")] = field(default_factory=CaptionSettings)
    films: Annotated[FilmSettings, section("Films")] = field(default_factory=FilmSettings)
    written: Annotated[WrittenSettings, section("Written clips")] = field(default_factory=WrittenSettings)

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)
        check(0 <= self.most_failed <= 1, f"most_failed is a share between 0 and 1, got {self.most_failed}")
        on_processes = self.engines.ray_address is None or self.engine == "ray"
        check(on_processes, "--engines.ray-address is for --engine ray: give that too")

    @property
    def shape(self) -> ClipConfig:
        """The clips that are cut, and their size where they are written: MOVA's, but for what `clip` states."""
        return self.clip.over(MOVA_CLIP)
