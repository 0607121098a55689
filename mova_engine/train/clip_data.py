"""From a folder of clips, or none, to batches of latents: generating, fitting the codecs, the cache, the loader."""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch

from mova_engine.checkpoints.folder import Codecs, codecs_of, load_codecs
from mova_engine.codecs import build_audio_codec, build_text_encoder, build_video_codec, video_from_uint8
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import ClipConfig, MovaConfig
from mova_engine.config.stages import stages
from mova_engine.config.train import LoaderSettings, TrainConfig
from mova_engine.data.dataset import SHOWN_REASONS, LatentDataset, open_dataset
from mova_engine.data.latent_cache import LatentCache
from mova_engine.data.media.decode import Clip, read_clip
from mova_engine.data.metadata import FILES, Entry, read_metadata
from mova_engine.data.synthetic.bounce import generate
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.memory.model_parts import codec_parts
from mova_engine.memory.residency import Residency

# In the folder of clips, unless loader.cache names another.
CACHE = "cache"
# Told (how many are done, of how many, what is being done).
Progress = Callable[[int, int, str], None]


def training_folder(config: TrainConfig, progress: Progress) -> Path:
    """The folder of clips to train on; the embedded ones are written first where the recipe asks for them."""
    if config.data is not None:
        return config.data
    if not config.loader.synthetic_clips:
        raise MovaError("no clips to train on: give --data, a folder with metadata.jsonl")
    return _generated(config.folder / "data", config.loader.synthetic_clips, config.seed, "train", progress)


def heldout_folder(config: TrainConfig, progress: Progress) -> Path | None:
    """The folder of held-out clips for validation; None where the run has none.

    Bouncing balls are written only where the run trains on them too: on clips of the user's own they would say nothing.
    """
    if not config.validation.every:
        return None
    if config.validation.data is not None:
        return config.validation.data
    if config.data is not None:
        return None
    return _generated(config.folder / "heldout", config.validation.synthetic_clips, config.seed, "heldout", progress)


def _generated(folder: Path, clips: int, seed: int, split: str, progress: Progress) -> Path:
    if not any((folder / name).is_file() for name in FILES):
        generate(folder, clips, seed, split, lambda done: progress(done, clips, f"writing {folder}"))
    return folder


def build_codecs(
    config: TrainConfig, model: MovaConfig, source: Path | None, folder: Path, device: torch.device
) -> tuple[Codecs, Residency]:
    """The model's codecs and text encoder: those of the checkpoint `source`, or embedded ones fitted to the clips.

    Pretrained ones lie on the host: the residency brings them to the device while they work, and keeps them there where
    clips are encoded online. The audio task has no video codec, and needs none. Raises MovaError where the model needs
    pretrained ones and there is no folder to take them from.
    """
    pictures = config.task == "joint"
    source = config.model.codecs or source
    order = stages(MemoryConfig(idle="device" if config.loader.encode == "online" else "host"))
    if source is not None:
        codecs = load_codecs(source, device=device, weights_on="cpu", parts=codecs_of(config.task))
        return codecs, Residency(device, codec_parts(codecs, source, text_waits="files"), order)
    kinds = ([model.video_codec] if pictures else []) + [model.audio_codec, model.text_encoder]
    pretrained = [kind for kind in kinds if kind not in ("dct", "mdct", "bytes")]
    if pretrained:
        raise MovaError(
            f"a {model.name} model needs pretrained codecs ({', '.join(pretrained)}): give --model.checkpoint, a "
            "folder to start from, or --model.codecs, a folder to take them from"
        )
    clips = _to_fit(folder, model.clip, config.loader, pictures)
    video = None
    if pictures:
        video = build_video_codec(model.video_codec, device=device).fitted(
            video_from_uint8(torch.from_numpy(clip.video)).unsqueeze(0) for clip in clips
        )
    audio = build_audio_codec(model.audio_codec, device=device).fitted(
        torch.from_numpy(clip.audio).view(1, 1, -1) for clip in clips
    )
    text = build_text_encoder(model.text_encoder, tokens=model.text_tokens, dim=model.video.text_dim, device=device)
    codecs = Codecs(video, audio, text)
    return codecs, Residency(device, codec_parts(codecs), order)


def _spread(entries: list[Entry], most: int) -> tuple[list[Entry], int]:
    """(All entries, how many of them to take), at most `most`. The first are spread evenly over the list; the others
    take the place of those that cannot be read.
    """
    stride = math.ceil(len(entries) / most)
    first = entries[::stride]
    return first + [entry for i, entry in enumerate(entries) if i % stride], len(first)


def _to_fit(folder: Path, clip: ClipConfig, settings: LoaderSettings, pictures: bool) -> list[Clip]:
    """The clips to fit codecs to, all of them with sound. MovaError where there are none, with the first reasons."""
    entries, count = _spread(read_metadata(folder), settings.num_fit_clips)
    reasons: list[str] = []
    clips = list(islice(_readable(entries, clip, settings, pictures, reasons), count))
    if not clips:
        shown = "; ".join(reasons[:SHOWN_REASONS]) + ("; ..." if len(reasons) > SHOWN_REASONS else "")
        raise MovaError(f"{folder}: none of {len(entries)} clips can be read to fit the codecs to: {shown}")
    return clips


def _readable(
    entries: list[Entry], clip: ClipConfig, settings: LoaderSettings, pictures: bool, reasons: list[str]
) -> Iterator[Clip]:
    """The clips that can be read and have sound; why each other one is not among them goes to `reasons`."""
    for entry in entries:
        try:
            found = read_clip(entry.path, clip, start=entry.start, silent=settings.silent_audio, pictures=pictures)
            if found.heard:
                yield found
            else:
                reasons.append(f"{entry.path}: has no sound, from which the audio codec takes its scale")
        except MovaError as error:
            reasons.append(str(error))


def open_clips(
    config: TrainConfig,
    model: MovaConfig,
    codecs: Codecs,
    residency: Residency | None,
    folder: Path,
    progress: Progress,
    processes: Processes,
    ahead: bool = True,
) -> LatentDataset:
    """Encode what the cache of `folder` lacks, unless it is to be done online, and return its usable clips."""
    settings = config.loader
    place = settings.cache or folder / CACHE
    options = {"dtype": settings.dtype, "silent": settings.silent_audio, "residency": residency}
    cache = LatentCache(place, model.clip, *codecs, **options)
    total = len(read_metadata(folder))
    return open_dataset(
        folder,
        cache,
        bad_clips=settings.on_bad_clip,
        preload=settings.preload,
        rank=processes.launch.rank,
        world=processes.launch.world,
        ahead=ahead,
        progress=lambda done: progress(done, total, f"encoding {folder}"),
    )
