"""`mova data preview`: a sheet of what the loader sees of a folder of clips."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from mova_engine.config.buckets import BucketSettings
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section
from mova_engine.config.limits import check, check_least
from mova_engine.errors import run_cli

ABOUT = """Show what training sees of a folder of clips.

Draws a sheet of the first clips as the loader reads them, resized, cropped, at the run's rate and of its length, with
waveform and caption. Clips that cannot be used are named, with the reason; status 1.
"""


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Which clips to show, in which shape."""

    data: tuple[Path, ...]
    """Folder of clips (with metadata.jsonl or metadata.json, or a caption a.txt beside each a.mp4), or list of clips
    (.jsonl, .csv, .parquet); or several.
    """
    checkpoint: Path | None = None
    """Model folder or training run, for its clips' shape."""
    model: str | None = None
    """Or a model size: nano, bench-mid, mova-360p, mova-720p."""
    out: Path = Path("preview.png")
    """Picture to write; with buckets one for each, called so too: preview-640x352x193.png."""
    overwrite: bool = False
    """Replace a picture that is there already."""
    count: int = 24
    """Clips to show."""
    silent_audio: Literal["refuse", "zeros", "mask"] = "refuse"
    """Clips without sound, as the trainer's loader.silent_audio."""
    task: Literal["joint", "audio"] = "joint"
    """Pictures and sound, or sound alone, of any file: its spectrogram is drawn above the waveform."""
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    buckets: Annotated[BucketSettings, section("Clips")] = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        check_least(self, "", count=1)
        check(
            (self.checkpoint is None) != (self.model is None),
            "give --checkpoint, a model folder or run, or --model, a size, whose clips' shape is used; one of the two",
        )
        check(self.out.suffix.lower() == ".png", f"--out {self.out}: a picture ends in .png")


PREVIEW = Command("mova data preview", PreviewConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sheet as the command line says; returns 1 if some clips cannot be used, else 0."""
    config = PREVIEW.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.checkpoints.locate import open_model
    from mova_engine.config.model import get_preset
    from mova_engine.data.preview import preview

    if config.checkpoint is not None:
        _, model = open_model(config.checkpoint, config.clip, sound=config.task == "audio")
        shape = model.clip
    else:
        shape = config.clip.over(get_preset(config.model or "").clip)
    options = {"count": config.count, "silent": config.silent_audio, "overwrite": config.overwrite}
    options |= {"pictures": config.task == "joint"}
    refused = preview(config.data, shape, config.out, buckets=config.buckets, **options)  # pyright: ignore[reportArgumentType]
    return 1 if refused else 0


if __name__ == "__main__":
    run_cli(main)
