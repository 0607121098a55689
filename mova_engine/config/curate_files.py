"""Settings of the files that curation reads and writes: those of published lists, mixtures, and clips as files."""

from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.limits import check, check_least


@dataclass(frozen=True, kw_only=True)
class FilmSettings:
    """Which films of folders and lists are taken."""

    media: tuple[Path, ...] = ()
    """Folders with the files that published lists name; default: the folder that a list is in."""
    seed: int = 0
    """Of mixtures (RAW with weights, films:3 others:1): decides which films a source gives."""


@dataclass(frozen=True, kw_only=True)
class WrittenSettings:
    """How accepted clips are written, with `--write mp4` or `--write shards`."""

    crf: int = 18
    """H.264's quality, 1 to 51, lower is better; 0: pictures and sound without loss, which few players show."""
    shard_clips: int = 256
    """Clips in a tar shard."""

    def __post_init__(self) -> None:
        check(0 <= self.crf <= 51, f"written.crf is a quality from 0 to 51, got {self.crf}")
        check_least(self, "written.", shard_clips=1)
