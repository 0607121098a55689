"""Encoding a folder of clips, or a share of it, into the cache that training reads."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from mova_engine.backend import get_backend
from mova_engine.checkpoints.folder import Codecs, codecs_of, load_codecs
from mova_engine.checkpoints.locate import open_model
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec
from mova_engine.config.buckets import NO_BUCKETS, BucketSettings, shortest
from mova_engine.config.clip import ClipSettings
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import MovaConfig, get_preset
from mova_engine.config.stages import stages
from mova_engine.data.bucketed import bucket_table, rows_of_sorted
from mova_engine.data.clip_buckets import sort_clips
from mova_engine.data.clip_sources import Sources, default_cache, named
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import Silent
from mova_engine.data.windows import list_clips
from mova_engine.distributed.processes import Launch, read_launch
from mova_engine.errors import MovaError
from mova_engine.memory.model_parts import codec_parts
from mova_engine.memory.residency import Residency

log = logging.getLogger(__name__)


def encode_folder(
    data: Sources,
    clip: ClipSettings,
    *,
    checkpoint: Path | None = None,
    model: str | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    silent: Silent = "refuse",
    task: str = "joint",
    shard: str | None = None,
    cut_every: float | None = None,
    buckets: BucketSettings = NO_BUCKETS,
) -> int:
    """Encode the clips of `data` with the codecs of the folder `checkpoint`, or those of the model size `model`.

    Prints the clips that cannot be used. data: folders and manifests. cache: the folder to fill; None: that of
    `default_cache`. shard: "I/N", the I-th of N shares, from 1; None: torchrun's rank. cut_every: as of `list_clips`.
    buckets: each clip is encoded in the size of its own.
    For the other arguments see `LatentCache`.
    Returns 1 if some clips cannot be used, else 0. Raises MovaError for errors that concern the whole folder.
    """
    launch = read_launch()
    share, shares = (launch.rank + 1, launch.world) if shard is None else _share(shard, launch)
    folder = cache or default_cache(data)
    which = f"share {share} of {shares}: " if shares > 1 else ""
    place = get_backend(device).device(launch.local_rank)
    config, codecs, source = _model(model, checkpoint, clip, task, place)
    shapes = buckets.shapes(config.clip)
    every = list_clips(data, folder, shortest(shapes), cut_every, task == "joint")
    parts, reasons, left_out = [(config.clip, every[share - 1 :: shares])], list[str](), 0
    if buckets.given:
        found = sort_clips(every, shapes, folder)
        parts = [(each.clip, each.entries[share - 1 :: shares]) for each in found.used]
        if share == 1:
            reasons, left_out = list(found.reasons.values()), found.left_out
            sys.stdout.writelines(f"{line}\n" for line in bucket_table(rows_of_sorted(found), left_out))
    residency = Residency(place, codec_parts(codecs, source, text_waits="files"), stages(MemoryConfig()))
    count, bad, done_before = sum(len(entries) for _, entries in parts), 0, 0
    with Progress(console=Console(stderr=True, quiet=launch.rank > 0)) as bar:
        progress = bar.add_task(escape(f"encoding {named(data)}"), total=count)
        for shape, entries in parts:
            store = LatentCache(folder, shape, *codecs.encoders(), dtype=dtype, silent=silent, residency=residency)
            if (otherwise := store.stored_otherwise(entries)) is not None:
                log.warning("%s", otherwise.replace("--loader.", "--"))

            def advance(done: int, before: int = done_before) -> None:
                bar.update(progress, completed=before + done)

            problems = store.fill(entries, advance)
            reasons += [problem.reason for problem in problems]
            bad, done_before = bad + len(problems), done_before + len(entries)
    for reason in reasons:
        sys.stdout.write(f"cannot be used: {reason}\n")
    sys.stdout.write(f"{which}{count - bad} of {count + left_out} clips are in {folder}\n")
    return int(bad + left_out > 0)


def _share(text: str, launch: Launch) -> tuple[int, int]:
    share, _, shares = text.partition("/")
    if launch.world > 1:
        raise MovaError("--shard and torchrun both divide the clips: leave --shard out, or start one process")
    if not (share.isdecimal() and shares.isdecimal() and 1 <= int(share) <= int(shares)):
        raise MovaError(f"--shard takes I/N, the I-th of N shares from 1, as 3/8; got '{text}'")
    return int(share), int(shares)


def _model(
    preset: str | None, checkpoint: Path | None, clip: ClipSettings, task: str, device: torch.device
) -> tuple[MovaConfig, Codecs, Path | None]:
    """The model, its codecs, and the folder that they were read from. Pretrained codecs are on the host, embedded ones
    on `device`.
    """
    if checkpoint is not None:
        folder, config = open_model(checkpoint, clip)
        return config, load_codecs(folder, device=device, weights_on="cpu", parts=codecs_of(task)), folder
    if preset is None:
        raise MovaError("give a checkpoint or a model size, whose codecs encode the clips")
    config = get_preset(preset)
    config = replace(config, clip=clip.over(config.clip))
    codecs = Codecs(
        build_video_codec(config.video_codec, device=device) if task == "joint" else None,
        build_audio_codec(config.audio_codec, device=device),
        build_text_encoder(config.text_encoder, tokens=config.text_tokens, dim=config.video.text_dim, device=device),
    )
    return config, codecs, None
