"""Settings of curation: which files, how clips are cut of them, what they are judged by, and what is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.captions import CaptionSettings
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import section
from mova_engine.config.curate_files import FilmSettings, WrittenSettings
from mova_engine.config.limits import check, check_least
from mova_engine.config.measuring import MeasuringOptions


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
    aspect: Literal["crop", "pad"] = "crop"
    """How pictures get the nearer of the shapes 16:9 and 9:16."""

    def __post_init__(self) -> None:
        check_least(self, "cut.", unit_seconds=1)
        check(len(self.kinds) > 0, "cut.kinds: name at least one kind of clips")


@dataclass(frozen=True, kw_only=True)
class CurateConfig(MeasuringOptions):
    """Which files become which clips."""

    raw: tuple[Path, ...]
    """Folders of films, or published lists of them; or several."""
    out: Path
    """Folder to write, or to go on with."""
    engine: Literal["processes", "ray"] = "processes"
    """What runs the work: processes of this machine, or Ray."""
    workers: int = 2
    """Films that are worked on at once."""
    write: Literal["none", "mp4", "shards"] = "none"
    """What becomes of accepted clips: a list that training reads from the films, mp4 files, or tar shards of those."""
    filters: Mapping[str, str] = field(default_factory=dict[str, str])
    """Conditions by name, all of which a clip must meet: "silence <= 0.5 and (desync <= 0.5 or imagebind >= 0.2)"."""
    marks: Mapping[str, str] = field(default_factory=dict[str, str])
    """Conditions by name that are noted for each clip, and drop none."""
    also: tuple[str, ...] = ()
    """Scores that are measured beside those that the filters need."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    cut: Annotated[CutSettings, section("Cutting")] = field(default_factory=CutSettings)
    captions: Annotated[CaptionSettings, section("Captions")] = field(default_factory=CaptionSettings)
    films: Annotated[FilmSettings, section("Films")] = field(default_factory=FilmSettings)
    written: Annotated[WrittenSettings, section("Written clips")] = field(default_factory=WrittenSettings)

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)
