"""`mova encode`: encode a folder of clips ahead of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from mova_engine.config.buckets import BucketSettings
from mova_engine.config.clip import ClipSettings
from mova_engine.config.command import Command, section, to_yaml
from mova_engine.config.limits import check, check_least
from mova_engine.errors import run_cli

ABOUT = """Encode a folder of clips ahead of training, into the cache that training reads.

Several processes, by torchrun, --workers (--ray: tasks of Ray) or each with its --shard, fill one folder.
Status 1 where clips cannot be used; they are named.
"""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What to encode, with which codecs."""

    data: tuple[Path, ...]
    """Folder of clips (with metadata.jsonl or metadata.json, or a caption a.txt beside each a.mp4), or list of clips
    (.jsonl, .csv, .parquet); or several.
    """
    checkpoint: Path | None = None
    """Model folder or training run: its clip, codecs and text encoder."""
    model: str | None = None
    """Or a model size, with embedded codecs that are fitted to no data: nano, bench-mid."""
    out: Path | None = None
    """Folder to fill; default: `cache` beside the clips."""
    device: str = "cpu"
    """cpu, cuda or npu: where the codecs run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of what is stored, as the trainer's loader.dtype."""
    silent_audio: Literal["refuse", "zeros", "mask"] = "refuse"
    """Clips without sound, as the trainer's loader.silent_audio."""
    task: Literal["joint", "audio"] = "joint"
    """Pictures and sound, or sound alone, of any file."""
    cut_every: float | None = None
    """Several clips of each file, one every so many seconds, as the trainer's loader.cut_every."""
    shard: str | None = None
    """Of N equal shares the I-th, from 1, as 3/8; default: torchrun's rank."""
    workers: int = 1
    """Processes of this machine that divide the clips among them; they share the device."""
    ray: bool = False
    """The workers are tasks of Ray, on this machine: each takes a device of its own, or a CPU."""
    ray_address: str | None = None
    """Of a Ray cluster that runs already, whose machines see the clips and the cache under the same paths: auto, or
    HOST:PORT.
    """
    clip: Annotated[ClipSettings, section("Clips")] = field(default_factory=ClipSettings)
    buckets: Annotated[BucketSettings, section("Clips")] = field(default_factory=BucketSettings)

    def __post_init__(self) -> None:
        self.buckets.check_task(self.task)
        check_least(self, "", workers=1)
        check(self.workers == 1 or self.shard is None, "--workers and --shard both divide the clips: give one of them")
        on_ray = self.ray or self.ray_address is not None
        check(not on_ray or self.shard is None, "--ray and --shard both divide the clips: give one of them")
        usable = self.cut_every is None or 0 < self.cut_every < math.inf
        check(usable, f"cut_every must be a positive number of seconds, got {self.cut_every}")
        check(
            (self.checkpoint is None) != (self.model is None),
            "give --checkpoint, a model folder or run, or --model, a size, whose codecs are used; one of the two",
        )


ENCODE = Command("mova encode", EncodeConfig, ABOUT)


def main(argv: Sequence[str] | None = None) -> int:
    """Encode clips as the command line says; returns 1 if some clips cannot be used, else 0."""
    config = ENCODE.parse(argv)
    if config is None:
        return 0
    # Imported late, so that help is instant.
    options: dict[str, Any] = {
        "checkpoint": config.checkpoint,
        "model": config.model,
        "cache": config.out,
        "device": config.device,
        "dtype": config.dtype,
        "silent": config.silent_audio,
        "task": config.task,
        "cut_every": config.cut_every,
        "buckets": config.buckets,
    }
    if config.ray or config.ray_address is not None:
        from mova_engine.data.encode_ray import encode_on_ray

        return encode_on_ray(config.data, config.clip, options, config.workers, config.ray_address)
    if config.workers > 1:
        from mova_engine.data.encode_workers import run_workers

        shares = (f"{number}/{config.workers}" for number in range(1, config.workers + 1))
        return run_workers([to_yaml(replace(config, workers=1, shard=share)) for share in shares])
    from mova_engine.data.encode_folder import encode_folder

    return encode_folder(config.data, config.clip, shard=config.shard, **options)


if __name__ == "__main__":
    run_cli(main)
