"""The model that a run trains: its sizes, where its weights come from, how it is saved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from mova_engine import __version__
from mova_engine.adapters.lora import save_lora
from mova_engine.adapters.reading import base_of
from mova_engine.checkpoints.folder import Codecs, component_configs, mova_config_from_folder, write_mova
from mova_engine.checkpoints.locate import ADAPTERS, find_components, find_model, open_model, say_other_clip
from mova_engine.checkpoints.released import INDEX, MODEL_CLASSES
from mova_engine.config.model import COMPONENTS, MovaConfig, SamplingConfig, get_preset
from mova_engine.config.train import LoraSettings, TrainConfig
from mova_engine.distributed.fsdp import Shards, shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import load_component, write_component, write_tensors
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.mova import Mova
from mova_engine.ops import DTYPES, OpTable
from mova_engine.train.lora_model import add_adapters, build_adapted, with_initial_adapters
from mova_engine.train.timestep_sampling import generator

AUDIO = "audio_dit"


def with_folders(config: TrainConfig, say: Callable[[str], object]) -> TrainConfig:
    """The configuration with the folders that its model's paths mean; `say` and errors as of `checkpoints.locate`.

    A run keeps to them: a checkpoint that is written later to a run that it starts from does not change it.
    """
    model = config.model
    checkpoint, codecs = model.checkpoint, model.codecs
    if checkpoint is not None and _from_folder(config):
        checkpoint = open_model(checkpoint, config.clip, say).folder
    elif checkpoint is not None:
        checkpoint = find_components(checkpoint, say)
        if (checkpoint / INDEX).is_file():
            say_other_clip(checkpoint, config.clip.over(get_preset(model.preset).clip), say)
    if codecs is not None:
        codecs = find_model(codecs, say)
    lora = with_initial_adapters(config.lora, say)
    return replace(config, model=replace(model, checkpoint=checkpoint, codecs=codecs), lora=lora)


def model_config(config: TrainConfig) -> MovaConfig:
    """Sizes of the model: the checkpoint's, or the preset's where a component is new or there is no checkpoint; the
    clip that the run states; and what it is to be sampled with.
    """
    settings = config.model
    if _from_folder(config):
        model = mova_config_from_folder(settings.checkpoint, config.clip)
    else:
        model = get_preset(settings.preset)
        model = replace(model, clip=config.clip.over(model.clip))
    if config.task == "joint" and config.diffusion.skip_first_frame and model.clip.latent_shape[0] == 1:
        raise MovaError(
            f"diffusion.skip_first_frame leaves the first latent frame out of the loss, and clips of "
            f"{model.clip.frames} frames have no other: train on longer clips, or set --diffusion.no-skip-first-frame"
        )
    model = replace(model, sampling=_sampling(config, model.sampling))
    if settings.aligned_rope:
        return model
    return replace(model, bridge=replace(model.bridge, aligned=False))


def _from_folder(config: TrainConfig) -> bool:
    """Whether the checkpoint's folder decides the sizes."""
    return config.model.checkpoint is not None and not config.model.init_from_scratch and config.task == "joint"


def _sampling(config: TrainConfig, known: SamplingConfig) -> SamplingConfig:
    """Guidance by text needs a model that has seen the empty text."""
    if config.diffusion.text_dropout > 0:
        return replace(known, guidance="text") if known.guidance == "none" else known
    return replace(known, guidance="none") if config.model.checkpoint is None else known


def build_model(
    config: TrainConfig, sizes: MovaConfig, ops: OpTable, device: torch.device, processes: Processes, fill: bool
) -> tuple[Mova, Shards | None]:
    """The model in float32 on `device`, with the components that the task trains; the others are None. Where the
    processes share its weights, also how.

    Weights are drawn from the seed, then replaced by the checkpoint's. fill=False leaves them undefined, for a run
    whose weights are about to be restored. Raises MovaError for a checkpoint that does not fit.
    """
    settings = config.parallel
    if config.lora.rank:
        return build_adapted(config, sizes, ops, device, processes)
    place = torch.device("meta") if settings.shard else device
    if config.task == "audio":
        model = Mova(sizes, ops, device="meta")
        model.video_dit = model.video_dit_2 = model.dual_tower_bridge = None
        model.audio_dit = AudioDiT(sizes.audio, ops, place)
    else:
        model = Mova(sizes, ops, place)
    if settings.shard:
        shards = shard_model(model, processes, device, DTYPES[config.dtype], config.memory.weights_on_host)
        if fill:
            _fill_shards(model, shards, config)
        return model, shards
    if fill:
        _fill(model, config, device)
    return model, None


def _sources(model: Mova, config: TrainConfig) -> tuple[bool, list[str]]:
    """Whether weights are to be drawn, and the components whose weights the checkpoint has."""
    start = config.model.checkpoint
    parts = [name for name in COMPONENTS if getattr(model, name) is not None]
    loaded = [name for name in parts if start is not None and name not in config.model.init_from_scratch]
    return bool(set(parts) - set(loaded)), loaded


def _fill(model: Mova, config: TrainConfig, device: torch.device) -> None:
    draw, loaded = _sources(model, config)
    if draw:
        # Drawn on the CPU: every device starts from the same weights.
        model.init_weights(generator(config.seed, "weights"))
    for name in loaded:
        load_component(getattr(model, name), config.model.checkpoint / name, device=device, dtype=torch.float32)


def _fill_shards(model: Mova, shards: Shards, config: TrainConfig) -> None:
    """The same, of which every process keeps its rows."""
    draw, loaded = _sources(model, config)
    if draw:
        model.init_weights(
            generator(config.seed, "weights"), lambda parameter, value: shards.piece(parameter).take(value)
        )
    for name in loaded:
        shards.load(getattr(model, name), config.model.checkpoint / name)


def outline(model: Mova, dtype: torch.dtype, lora: LoraSettings | None = None) -> Mova:
    """A model of the same parts without data, for names and shapes; `lora`: with its adapters."""
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
    write: Callable[..., None] | None = None,
) -> None:
    """Write the model as a folder that the sampler loads; the audio tower alone as its component's folder, adapters as
    their file.

    Pretrained codecs are copied from where they came, so that the checkpoint is complete. write: as of
    `write_component`.
    """
    if config.lora.rank:
        facts = {**base_of(config.model.checkpoint), "recipe": config.name, "engine": __version__}
        save_lora(model, folder / ADAPTERS, write or write_tensors, facts)
        return
    if model.video_dit is None:
        values, kind = component_configs(model.config)[AUDIO], MODEL_CLASSES[AUDIO][1]
        write_component(model.audio_dit, values, folder / AUDIO, kind, write=write)
        return
    diffusion = config.diffusion
    told = ("video_shift", "audio_shift", "prediction_type", "sigma_floor", "skip_first_frame")
    write_mova(
        model,
        folder,
        video_codec=codecs.video,
        audio_codec=codecs.audio,
        base=config.model.codecs or config.model.checkpoint,
        boundary=diffusion.boundary,
        diffusion={**{name: getattr(diffusion, name) for name in told}, "bridge": config.model.bridge},
        write=write,
    )
