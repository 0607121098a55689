"""The model that a run trains: its sizes, its initial weights, its export."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mova_engine import __version__
from mova_engine.adapters.lora import save_lora
from mova_engine.adapters.reading import base_of
from mova_engine.checkpoints.folder import Codecs, mova_config_from_folder, write_mova
from mova_engine.checkpoints.locate import ADAPTERS, find_components, find_model, open_model, say_other_clip, with_index
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.buckets import bucket_name, largest, shortest
from mova_engine.config.model import COMPONENTS, MovaConfig, SamplingConfig, get_preset
from mova_engine.config.train import LoraSettings, TrainConfig
from mova_engine.distributed.fsdp import Shards, shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import load_component, write_tensors
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, OpTable
from mova_engine.train.adapter_card import metadata_of, write_card
from mova_engine.train.fp8_watch import use_fp8
from mova_engine.train.lora_model import add_adapters, alpha_of, base_folder, build_adapted, with_initial_adapters
from mova_engine.train.timestep_sampling import generator

AUDIO = "audio_dit"


def with_folders(config: TrainConfig, say: Callable[[str], object]) -> TrainConfig:
    """Return the configuration with its model's paths resolved to folders; `say` and errors as of `checkpoints.locate`.

    Paths are resolved once, at the start: if a path names a run, checkpoints that it writes later do not matter.
    """
    model = config.model
    checkpoint, codecs = model.checkpoint, model.codecs
    if (decides_sizes := _sizes_folder(config)) is not None:
        checkpoint = open_model(decides_sizes, config.clip, say).folder
    elif checkpoint is not None:
        checkpoint = find_components(checkpoint, say)
        if (checkpoint / INDEX).is_file():
            say_other_clip(checkpoint, config.clip.over(get_preset(model.preset).clip), say)
    if codecs is not None:
        codecs = (find_model if config.task == "joint" else find_components)(codecs, say)
    audio_from = None if model.audio_from is None else find_components(model.audio_from, say)
    lora = with_initial_adapters(config.lora, say)
    return replace(config, model=replace(model, checkpoint=checkpoint, codecs=codecs, audio_from=audio_from), lora=lora)


def model_config(config: TrainConfig) -> MovaConfig:
    """The sizes of the run's model, its clip, and its default sampling settings.

    Sizes are the checkpoint's; the preset's if there is no checkpoint or if components start from scratch. Raises
    MovaError if diffusion.skip_first_frame or given_start leaves no frame of the run's clips or of a bucket, or if one
    has too few tokens for the processes that share it.
    """
    settings = config.model
    if (folder := _sizes_folder(config)) is not None:
        model = mova_config_from_folder(folder, config.clip)
    else:
        model = get_preset(settings.preset)
        model = replace(model, clip=config.clip.over(model.clip))
    shapes = config.buckets.shapes(model.clip)
    least = shortest(shapes)
    if config.task == "joint" and config.diffusion.skip_first_frame and least.latent_shape[0] == 1:
        raise MovaError(
            f"diffusion.skip_first_frame leaves the first latent frame out of the loss, and clips of "
            f"{least.frames} frames have no other: train on longer clips, or set --diffusion.no-skip-first-frame"
        )
    if config.diffusion.given_start and config.diffusion.start_frames >= least.frames:
        raise MovaError(
            f"diffusion.start_frames gives {config.diffusion.start_frames} pictures of clips of {least.frames}: "
            "nothing would be left to learn"
        )
    few = min(shapes, key=lambda shape: shape.video_tokens)
    if few.video_tokens < config.parallel.context_parallel:
        raise MovaError(
            f"parallel.context_parallel {config.parallel.context_parallel} shares a clip's video tokens, and a clip of "
            f"{bucket_name(few)} has only {few.video_tokens}: give fewer processes, or a larger clip or bucket"
        )
    model = replace(model, sampling=_sampling(config, model.sampling))
    if settings.aligned_rope:
        return model
    return replace(model, bridge=replace(model.bridge, aligned=False))


def largest_clip(config: TrainConfig, model: MovaConfig) -> MovaConfig:
    """The model with the clip that takes most memory: the largest bucket, or the only size."""
    return replace(model, clip=largest(config.buckets.shapes(model.clip)))


def _sizes_folder(config: TrainConfig) -> Path | None:
    """The checkpoint's folder if it determines the sizes; None if the preset does."""
    return config.model.checkpoint if config.task == "joint" and not config.model.init_from_scratch else None


def _sampling(config: TrainConfig, known: SamplingConfig) -> SamplingConfig:
    """The default sampling settings: guidance by text only for a model that has been trained on the empty text too."""
    if config.diffusion.text_dropout > 0:
        return replace(known, guidance="text") if known.guidance == "none" else known
    return replace(known, guidance="none") if config.model.checkpoint is None else known


def build_model(
    config: TrainConfig, sizes: MovaConfig, ops: OpTable, device: torch.device, processes: Processes, fill: bool
) -> tuple[Mova, Shards | None]:
    """Build the model in float32 on `device`, with the components that the task trains; the others are None. Returns
    its Shards too if parallel.shard is set, else None.

    fill: initialise the weights from the seed, then load those of the checkpoint; False leaves them undefined, for a
    run that restores them. Raises MovaError for a checkpoint that does not fit.
    """
    settings = config.parallel
    if config.lora.rank:
        return build_adapted(config, sizes, ops, device, processes)
    place = torch.device("meta") if settings.shard else device
    if config.task == "audio":
        model = audio_only(Mova(sizes, ops, device="meta"))
        model.audio_dit = AudioDiT(sizes.audio, ops, place)
    else:
        model = Mova(sizes, ops, place)
        model.chunk_rows = config.memory.chunk_rows
    use_fp8(config, model, ops)
    if settings.shard:
        shards = shard_model(model, processes, device, DTYPES[config.dtype], config.memory)
        if fill:
            _fill_shards(model, shards, config)
        return model, shards
    if fill:
        _fill(model, config, device)
    return model, None


def audio_only(model: Mova) -> Mova:
    """`model` with all components but the audio tower set to None."""
    for name in COMPONENTS:
        if name != AUDIO:
            setattr(model, name, None)
    return model


def _sources(model: Mova, config: TrainConfig) -> tuple[bool, dict[str, Path]]:
    """Whether any component starts from random weights, and component -> folder of those that are loaded."""
    parts = [name for name in COMPONENTS if getattr(model, name) is not None]
    loaded = {name: folder for name in parts if (folder := source_of(name, config)) is not None}
    return bool(set(parts) - set(loaded)), loaded


def source_of(component: str, config: TrainConfig) -> Path | None:
    """The folder of the weights that a component starts from; None: from scratch."""
    settings = config.model
    if component == AUDIO and settings.audio_from is not None:
        return settings.audio_from / AUDIO
    if settings.checkpoint is None or component in settings.init_from_scratch:
        return None
    return settings.checkpoint / component


def _fill(model: Mova, config: TrainConfig, device: torch.device) -> None:
    draw, loaded = _sources(model, config)
    if draw:
        # Drawn on the CPU: every device starts from the same weights.
        model.init_weights(generator(config.seed, "weights"))
    for name, folder in loaded.items():
        load_component(getattr(model, name), folder, device=device, dtype=torch.float32)


def _fill_shards(model: Mova, shards: Shards, config: TrainConfig) -> None:
    """As `_fill`, for a sharded model: every process keeps its own rows."""
    draw, loaded = _sources(model, config)
    if draw:
        model.init_weights(
            generator(config.seed, "weights"), lambda parameter, value: shards.piece(parameter).take(value)
        )
    for name, folder in loaded.items():
        shards.load(getattr(model, name), folder)


def outline(model: Mova, dtype: torch.dtype, lora: LoraSettings | None = None) -> Mova:
    """A model of the same components on the meta device, for names and shapes. lora: with these adapters."""
    bare = Mova(model.config, model.audio_dit.ops, "meta", dtype)
    for name in COMPONENTS:
        if getattr(model, name) is None:
            setattr(bare, name, None)
    if lora is not None and lora.rank:
        add_adapters(bare, lora)
    return bare


def export_model(
    model: Mova,
    codecs: Codecs,
    config: TrainConfig,
    folder: Path,
    step: int,
    write: Callable[..., None] | None = None,
) -> None:
    """Write the model as a folder that the sampler loads; an audio tower alone for `mova sample --audio-alone`.
    Adapters are written as a file with a card. step: the run's.

    Pretrained codecs are copied from their folder, so that the checkpoint is complete. write: as of `write_component`.
    """
    if config.lora.rank:
        facts = {**base_of(base_folder(config)), **metadata_of(config, step), "engine": __version__}
        save_lora(model, folder / ADAPTERS, write or write_tensors, facts)
        write_card(config, step, facts, alpha_of(config.lora), folder)
        return
    diffusion = config.diffusion
    told = ("video_shift", "audio_shift", "prediction_type", "sigma_floor", "skip_first_frame")
    write_mova(
        model,
        folder,
        video_codec=codecs.video,
        audio_codec=codecs.audio,
        base=config.model.codecs or with_index(config.model.checkpoint),
        boundary=diffusion.boundary,
        diffusion={
            **{name: getattr(diffusion, name) for name in told},
            "bridge": config.model.bridge,
            "start_frames": diffusion.start_frames if diffusion.given_start else 0,
        },
        write=write,
    )
