"""A run's clips by source and bucket, and their caches."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mova_engine.checkpoints.folder import Codecs
from mova_engine.config.buckets import shortest
from mova_engine.config.data_mix import WeightedFolder
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.train import TrainConfig
from mova_engine.data.bucketed import BucketedClips, BucketRow
from mova_engine.data.clip_buckets import SortedClips, sort_clips
from mova_engine.data.clip_sources import Sources, default_cache, named
from mova_engine.data.dataset import SHOWN_REASONS, LatentDataset, NoUsableClipsError, open_entries
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.mixture import MixedSet
from mova_engine.data.windows import list_clips
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.memory.residency import Residency

log = logging.getLogger(__name__)

# Called with (number done, total number, description).
Progress = Callable[[int, int, str], None]


# One source or several as one set of clips, or sources that are mixed by weight.
Data = Sources | tuple[WeightedFolder, ...]


class SourceClips(NamedTuple):
    """The clips of a source by bucket. name, weight: of a mix's source."""

    name: str
    weight: float
    sources: Sources
    found: SortedClips


def weighted(data: Data) -> list[tuple[str, float, Sources]]:
    """Name, weight and sources of each set of clips."""
    sets = [each for each in data if isinstance(each, WeightedFolder)] if not isinstance(data, Path) else []
    if sets:
        return [(each.name, each.weight, each.path) for each in sets]
    return [("", 1.0, data)]  # pyright: ignore[reportReturnType] it has no weights


def sort_sources(config: TrainConfig, model: MovaConfig, data: Data, progress: Progress) -> tuple[SourceClips, ...]:
    """The clips of each source by their buckets; () for a run without buckets. Raises MovaError if none fits in any."""
    if not config.buckets.given:
        return ()
    shapes, settings = config.buckets.shapes(model.clip), config.loader
    every = list[SourceClips]()
    for name, weight, sources in weighted(data):
        cache = settings.cache or default_cache(sources)
        entries = list_clips(sources, cache, shortest(shapes), settings.cut_every)

        def looked(done: int, total: int, what: str = f"looking at {named(sources)}") -> None:
            progress(done, total, what)

        found = sort_clips(entries, shapes, cache, looked)
        reasons = list(found.reasons.values())
        if not found.used or (found.left_out and settings.on_bad_clip == "stop"):
            first = "; ".join(reasons[:SHOWN_REASONS]) or "they are too short"
            raise MovaError(f"{named(sources)}: {found.left_out} of {len(entries)} clips fit in no bucket: {first}")
        for identity, reason in found.reasons.items():
            log.warning("clip '%s' cannot be used: %s", identity, reason)
        every.append(SourceClips(name, weight, sources, found))
    return tuple(every)


def cache_of(
    config: TrainConfig, clip: ClipConfig, codecs: Codecs, residency: Residency | None, data: Sources
) -> LatentCache:
    """The cache of the clips of `data` in one shape."""
    settings = config.loader
    return LatentCache(
        settings.cache or default_cache(data),
        clip,
        *codecs.encoders(),
        dtype=settings.dtype,
        silent=settings.silent_audio,
        residency=residency,
    )


def open_buckets(
    config: TrainConfig,
    codecs: Codecs,
    residency: Residency | None,
    sorted_clips: Sequence[SourceClips],
    progress: Progress,
    processes: Processes,
    ahead: bool,
) -> BucketedClips:
    """The sets of all sources and buckets. A source's weight is divided among its buckets by their clips."""
    settings, sets, rows, left_out = config.loader, list[MixedSet](), list[BucketRow](), dict[str, str]()
    lost: NoUsableClipsError | None = None
    for source in sorted_clips:
        opened = list[tuple[str, LatentDataset]]()
        left_out |= source.found.reasons
        for bucket in source.found.buckets:
            name = f"{source.name}/{bucket.name}" if source.name else bucket.name
            what = f"{named(source.sources)} as {bucket.name}"

            def encoded(done: int, total: int, what: str = what) -> None:
                progress(done, total, f"encoding {what}")

            count = 0
            if len(bucket.entries):
                try:
                    clips = open_entries(
                        bucket.entries,
                        cache_of(config, bucket.clip, codecs, residency, source.sources),
                        what,
                        bad_clips=settings.on_bad_clip,
                        preload=settings.preload,
                        rank=processes.launch.rank,
                        world=processes.launch.world,
                        ahead=ahead,
                        progress=encoded,
                    )
                    opened.append((name, clips))
                    count = len(clips)
                except NoUsableClipsError as error:
                    # The other buckets' clips may be good.
                    lost = error
                    log.warning("%s", error)
            rows.append(BucketRow(name, bucket.clip, count, bucket.kept))
        count = sum(len(clips) for _, clips in opened)
        sets += [MixedSet(name, source.weight * len(clips) / count, clips) for name, clips in opened]
    if not sets and lost is not None:
        raise lost
    return BucketedClips(sets, rows, left_out)
