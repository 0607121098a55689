"""`mova data index`: the index of tar shards, from which clips are read by ranges of bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mova_engine.config.command import Command
from mova_engine.config.limits import check_least
from mova_engine.errors import run_cli

ABOUT = """Write the index of tar shards, which --data then takes as a list of clips.

Shards are as WebDataset writes them: plain tar files with a.mp4 and its caption a.txt, or a.json with the key caption.
They may be files, or addresses such as https:// and s3://. Each is read once, from its beginning to its end.
"""


@dataclass(frozen=True)
class IndexConfig:
    """Which shards to read."""

    shards: tuple[str, ...]
    """Tar files: paths, or addresses such as https://host/000.tar."""
    out: Path = Path("clips.parquet")
    """Index to write."""
    base: str | None = None
    """Address under which the trainer will find the shards; default: where they are now."""
    threads: int = 4
    """Shards to read at once."""
    overwrite: bool = False
    """Replace an index that is there already."""
    sizes: bool = False
    """Look at each clip, and write its width, height and duration too: buckets of long lists need them."""

    def __post_init__(self) -> None:
        check_least(self, "", threads=1)


INDEX = Command("mova data index", IndexConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the index as the command line says; returns 0."""
    config = INDEX.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    from mova_engine.data.shard_index import write_index

    options = {"base": config.base, "threads": config.threads, "overwrite": config.overwrite, "sizes": config.sizes}
    write_index(config.shards, config.out, **options)  # pyright: ignore[reportArgumentType]
    return 0


if __name__ == "__main__":
    run_cli(main)
