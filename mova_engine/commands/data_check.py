"""`mova data check`: look at all clips ahead of training, several at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.buckets import BucketSettings
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.config.limits import check, check_least
from mova_engine.errors import run_cli

ABOUT = """Look at all clips ahead of training, and name those that cannot be used, with the reasons counted.

Each clip is decoded as the loader would. What was found is kept in a ledger: a check that was stopped goes on, and only
clips that are new or have changed are looked at again. Status 1 where clips cannot be used.
"""


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Which clips to look at, in which shape."""

    data: tuple[Path, ...]
    """Folder of clips (with metadata.jsonl or metadata.json, or a caption a.txt beside each a.mp4), or list of clips
    (.jsonl, .csv, .parquet); or several.
    """
    checkpoint: Path | None = None
    """Model folder or training run, for its clips' shape."""
    model: str | None = None
    """Or a model size: nano, bench-mid, mova-360p, mova-720p."""
    out: Path = Path("clips-checked.jsonl")
    """Ledger to write, or to go on with."""
    overwrite: bool = False
    """Begin the ledger anew."""
    workers: int = 2
    """Clips to decode at once, each in a process."""
    silent_audio: Literal["refuse", "zeros", "mask"] = "refuse"
    """Clips without sound, as the trainer's loader.silent_audio."""
    task: Literal["joint", "audio"] = "joint"
    """Pictures and sound, or sound alone, of any file."""
    cut_every: float | None = None
    """Several clips of each file, one every so many seconds, as the trainer's loader.cut_every."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    buckets: Annotated[BucketSettings, section("Clips")] = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        check_least(self, "", workers=1)
        usable = self.cut_every is None or 0 < self.cut_every < math.inf
        check(usable, f"cut_every must be a positive number of seconds, got {self.cut_every}")
        self.buckets.check_task(self.task)
        check(
            (self.checkpoint is None) != (self.model is None),
            "give --checkpoint, a model folder or run, or --model, a size, whose clips' shape is used; one of the two",
        )


CHECK = Command("mova data check", CheckConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Look at the clips as the command line says; returns 1 if some cannot be used, else 0."""
    config = CHECK.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.checkpoints.locate import open_model
    from mova_engine.config.model import get_preset
    from mova_engine.data.clip_check import check_clips

    if config.checkpoint is not None:
        _, model = open_model(config.checkpoint, config.clip, sound=config.task == "audio")
        shape = model.clip
    else:
        shape = config.clip.over(get_preset(config.model or "").clip)
    found = check_clips(
        config.data,
        shape,
        config.out,
        workers=config.workers,
        silent=config.silent_audio,
        pictures=config.task == "joint",
        cut_every=config.cut_every,
        overwrite=config.overwrite,
        buckets=config.buckets,
    )
    return int(found.kinds.total() > 0)


if __name__ == "__main__":
    run_cli(main)
