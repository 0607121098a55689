"""Prepares a run's clips: writes the embedded clips, builds and fits the codecs, opens the latent caches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch

from mova_engine.checkpoints.folder import Codecs, codecs_of, load_codecs
from mova_engine.checkpoints.locate import with_index
from mova_engine.codecs import (
    DctVideoCodec,
    MdctAudioCodec,
    build_audio_codec,
    build_text_encoder,
    build_video_codec,
    video_from_uint8,
)
from mova_engine.config.data_mix import WeightedFolder
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.mesh import MeshShape
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import stages
from mova_engine.config.train import LoaderSettings, TrainConfig
from mova_engine.data.bucketed import BucketedClips
from mova_engine.data.clip_sources import Sources, named, read_clips
from mova_engine.data.dataset import SHOWN_REASONS, LatentDataset, open_dataset
from mova_engine.data.loader import Loader, build_loader
from mova_engine.data.media.decode import Clip, read_clip
from mova_engine.data.metadata import FILES, Entry
from mova_engine.data.mixture import MixedClips, MixedLoader, MixedSet
from mova_engine.data.permutation import Permutation
from mova_engine.data.synthetic.bounce import SCENE, Scene, generate
from mova_engine.data.synthetic.notes import KINDS, generate_sounds
from mova_engine.distributed.processes import Processes
from mova_engine.distributed.rounds import Rounds
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import UnreachableError
from mova_engine.memory.model_parts import codec_parts
from mova_engine.memory.residency import Residency
from mova_engine.train.bucket_data import Data, Progress, SourceClips, cache_of, open_buckets, weighted


def training_sources(config: TrainConfig, model: MovaConfig, progress: Progress) -> Data:
    """Return the sources of clips to train on; writes the embedded clips first if the recipe asks for them.

    Raises MovaError if there are no clips.
    """
    if config.data:
        return config.data
    if config.mix:
        return config.mixed
    if not config.loader.synthetic_clips:
        raise MovaError("no clips to train on: give --data, a folder with metadata.jsonl, or several by --mix")
    folder = _generated(config, model, config.folder / "data", config.loader.synthetic_clips, "train", progress)
    if config.loader.synthetic == "sounds":
        return tuple(WeightedFolder(folder / kind, 1.0, kind) for kind in KINDS)
    return folder


def heldout_source(config: TrainConfig, model: MovaConfig, progress: Progress) -> Path | None:
    """Return the folder or manifest of held-out clips for validation; None if the run has none.

    Embedded held-out clips are written only if the run trains on embedded clips: for a model that was trained on other
    clips their loss would mean nothing.
    """
    if not config.validation.every:
        return None
    if config.validation.data is not None:
        return config.validation.data
    if config.data or config.mix or not config.validation.synthetic_clips:
        return None
    return _generated(config, model, config.folder / "heldout", config.validation.synthetic_clips, "heldout", progress)


def _generated(
    config: TrainConfig, model: MovaConfig, folder: Path, clips: int, split: str, progress: Progress
) -> Path:
    """The folder of embedded clips of a split; they are written if it has none."""
    if any((folder / name).is_file() for name in FILES):
        return folder

    def done(count: int) -> None:
        progress(count, clips, f"writing {folder}")

    if config.loader.synthetic == "sounds":
        generate_sounds(folder, clips, config.seed, split, done)
    else:
        midway = config.loader.synthetic_midway if split == "train" else 0.0
        shapes = config.buckets.shapes(model.clip) if config.buckets.given else ()
        scenes = [Scene(shape.width, shape.height, shape.frames) for shape in shapes] or [SCENE]
        generate(folder, clips, config.seed, split, done, midway, scenes)
    return folder


def build_codecs(
    config: TrainConfig,
    model: MovaConfig,
    source: Path | None,
    data: Data,
    device: torch.device,
    sorted_clips: Sequence[SourceClips] = (),
) -> tuple[Codecs, Residency]:
    """Build the model's codecs and text encoder, and their Residency: those of the checkpoint `source`, or embedded
    ones that are fitted to the clips of `data`. sorted_clips: as of `sort_sources`.

    Pretrained codecs start on the host. The Residency moves them to the device for their stages, and keeps them there
    if clips are encoded online. The audio task has no video codec. Raises MovaError if the model needs pretrained
    codecs and there is no folder to read them from.
    """
    pictures = config.task == "joint"
    source = config.model.codecs or with_index(source)
    order = stages(MemoryConfig(idle="device" if config.loader.encode == "online" else "host"))
    scaled = _scaled_with_tower(config, source, device)
    if source is not None:
        codecs = load_codecs(source, device=device, weights_on="cpu", parts=codecs_of(config.task))
        codecs = codecs if scaled is None else codecs._replace(audio=scaled)
        return codecs, Residency(device, codec_parts(codecs, source, text_waits="files"), order)
    kinds = ([model.video_codec] if pictures else []) + [model.audio_codec, model.text_encoder]
    pretrained = [kind for kind in kinds if kind not in ("dct", "mdct", "bytes")]
    if pretrained:
        raise MovaError(
            f"a {model.name} model needs pretrained codecs ({', '.join(pretrained)}): give --model.checkpoint, a "
            "folder to start from, or --model.codecs, a folder to take them from"
        )
    clips = _to_fit(config, model.clip, data, sorted_clips)
    video = None
    if pictures:
        embedded = build_video_codec(model.video_codec, device=device)
        assert isinstance(embedded, DctVideoCodec), "the others are pretrained"
        video = embedded.fitted(video_from_uint8(torch.from_numpy(clip.pictures)).unsqueeze(0) for clip in clips)
    audio = scaled
    if audio is None:
        embedded = build_audio_codec(model.audio_codec, device=device)
        assert isinstance(embedded, MdctAudioCodec), "the others are pretrained"
        audio = embedded.fitted(torch.from_numpy(clip.audio).view(1, 1, -1) for clip in clips)
    text = build_text_encoder(model.text_encoder, tokens=model.text_tokens, dim=model.video.text_dim, device=device)
    codecs = Codecs(video, audio, text)
    return codecs, Residency(device, codec_parts(codecs), order)


def _scaled_with_tower(config: TrainConfig, source: Path | None, device: torch.device) -> MdctAudioCodec | None:
    """The embedded audio codec of the folder that the audio tower is taken from: the tower learnt latents of its scale.
    None where there is none, or where `source` is a checkpoint that the run resumes, or codecs that the user named.
    """
    start = with_index(config.model.audio_from)
    named = source is not None and source != config.model.checkpoint
    if start is None or named:
        return None
    codec = load_codecs(start, device=device, weights_on="meta", parts=("audio",)).audio
    return codec if isinstance(codec, MdctAudioCodec) else None


def drawn(entries: Sequence[Entry], most: int) -> tuple[Iterable[Entry], int]:
    """Return (entries, count): read `count` (at most `most`) of the reordered entries.

    The first `count` are drawn at random, always the same of a list of this length, in the list's order; the others
    follow as substitutes for those that cannot be read. Every n-th entry would not do: lists repeat, as speakers,
    captions or colours take turns, and it might see one kind alone.
    """
    order, count = Permutation(len(entries), 0, 0), min(most, len(entries))
    first = np.sort(order(np.arange(count)))
    substitutes = (order(np.array([place]))[0] for place in range(count, len(entries)))
    return (entries[int(number)] for number in chain(first, substitutes)), count


def _to_fit(config: TrainConfig, clip: ClipConfig, data: Data, sorted_clips: Sequence[SourceClips]) -> list[Clip]:
    """Read the clips that codecs are fitted to, of each source by its weight and of each bucket by its clips; all have
    sound. Raises MovaError with the first reasons if a source has none.
    """
    settings, clips = config.loader, list[Clip]()
    sets = weighted(data)
    whole = sum(weight for _, weight, _ in sets)
    for number, (_, weight, sources) in enumerate(sets):
        if sorted_clips:
            parts = [(each.clip, each.entries) for each in sorted_clips[number].found.used]
        else:
            parts = [(clip, read_clips(sources, settings.cache))]
        listed = sum(len(entries) for _, entries in parts)
        reasons, found = list[str](), list[Clip]()
        for shape, entries in parts:
            # Of one part that is the weight's share to the last bit.
            wanted = settings.num_fit_clips * weight / whole
            chosen, count = drawn(entries, max(1, round(wanted * len(entries) / listed)))
            found += islice(_readable(chosen, shape, settings, config.task == "joint", reasons), count)
        if not found:
            shown = "; ".join(reasons[:SHOWN_REASONS]) + ("; ..." if len(reasons) > SHOWN_REASONS else "")
            raise MovaError(f"{named(sources)}: none of {listed} clips can be read to fit the codecs to: {shown}")
        clips += found
    return clips


def _readable(
    entries: Iterable[Entry], clip: ClipConfig, settings: LoaderSettings, pictures: bool, reasons: list[str]
) -> Iterator[Clip]:
    """Yield the clips that can be read and have sound; append the reasons of the others to `reasons`."""
    for entry in entries:
        try:
            found = read_clip(
                entry.path, clip, start=entry.start, silent=settings.silent_audio, pictures=pictures, edit=entry.edit
            )
            if found.heard:
                yield found
            else:
                reasons.append(f"{entry.path}: has no sound, from which the audio codec takes its scale")
        except UnreachableError:
            raise  # other clips in its place would make other codecs
        except MovaError as error:
            reasons.append(str(error))


def open_clips(
    config: TrainConfig,
    model: MovaConfig,
    codecs: Codecs,
    residency: Residency | None,
    data: Sources,
    progress: Progress,
    processes: Processes,
    ahead: bool = True,
) -> LatentDataset:
    """Open the usable clips of `data`. ahead: first encode those that are missing in its cache."""
    settings = config.loader
    return open_dataset(
        data,
        cache_of(config, model.clip, codecs, residency, data),
        bad_clips=settings.on_bad_clip,
        preload=settings.preload,
        rank=processes.launch.rank,
        world=processes.launch.world,
        ahead=ahead,
        cut_every=settings.cut_every,
        progress=lambda done, total: progress(done, total, f"encoding {named(data)}"),
    )


def open_mix(
    config: TrainConfig,
    model: MovaConfig,
    codecs: Codecs,
    residency: Residency | None,
    data: Data,
    progress: Progress,
    processes: Processes,
    ahead: bool = True,
    sorted_clips: Sequence[SourceClips] = (),
) -> LatentDataset:
    """`open_clips` of one set of clips, or of the sources of a mix as one data set. sorted_clips: as of `sort_sources`
    of `data`; those of each bucket are then a set of their own.
    """
    if sorted_clips:
        return open_buckets(config, codecs, residency, sorted_clips, progress, processes, ahead)
    sets = [
        MixedSet(name, weight, open_clips(config, model, codecs, residency, sources, progress, processes, ahead))
        for name, weight, sources in weighted(data)
    ]
    return MixedClips(sets) if len(sets) > 1 else sets[0].clips


def open_loader(
    config: TrainConfig, clips: LatentDataset, shape: MeshShape, data_rank: int, rounds: Rounds | None
) -> Loader:
    """The batches of one of the data-parallel groups of a mesh. rounds: of the processes of such a group."""
    settings = config.loader
    if isinstance(clips, MixedClips):
        return MixedLoader(
            clips,
            settings.batch,
            seed=config.seed,
            rank=data_rank,
            world=shape.data_parallel,
            workers=0 if clips.in_memory else settings.workers,
            rounds=None if clips.in_memory else rounds,
            turn=config.clips_per_step(shape) if isinstance(clips, BucketedClips) else None,
        )
    return build_loader(
        clips,
        settings.batch,
        seed=config.seed,
        rank=data_rank,
        world=shape.data_parallel,
        workers=settings.workers,
        rounds=rounds,
    )
