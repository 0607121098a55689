"""The model that a run trains: its sizes, where its weights come from, how it is saved."""

from dataclasses import replace
from pathlib import Path

import torch

from mova_engine.config import MovaConfig, get_preset
from mova_engine.errors import MovaError
from mova_engine.models.audio_dit import AudioDiT
from mova_engine.models.checkpoint import (
    MODEL_CLASSES,
    Codecs,
    component_configs,
    mova_config_from_folder,
    save_mova,
)
from mova_engine.models.mova import COMPONENTS, Mova
from mova_engine.models.weights import load_component, write_component
from mova_engine.ops import OpTable
from mova_engine.train.config import TrainConfig
from mova_engine.train.draws import generator

AUDIO = "audio_dit"


def model_config(config: TrainConfig) -> MovaConfig:
    """Sizes of the model: the checkpoint's, or the preset's where a component is new or there is no checkpoint."""
    settings = config.model
    from_folder = settings.checkpoint is not None and not settings.new and config.task == "joint"
    model = mova_config_from_folder(settings.checkpoint) if from_folder else get_preset(settings.preset)
    if settings.aligned_rope:
        return model
    return replace(model, bridge=replace(model.bridge, aligned=False))


def build_model(config: TrainConfig, sizes: MovaConfig, ops: OpTable, device: torch.device, fill: bool) -> Mova:
    """The model in float32 on `device`, with the components that the task trains; the others are None.

    Weights are drawn from the seed, then replaced by the checkpoint's. fill=False leaves them undefined, for a run
    whose weights are about to be restored. Raises MovaError for a checkpoint that does not fit.
    """
    start = config.model.checkpoint
    if config.model.new and start is None:
        raise MovaError(f"{config.name} starts from other components' weights: give --model.checkpoint, their folder")
    if config.task == "audio":
        model = Mova(sizes, ops, device="meta")
        model.video_dit = model.video_dit_2 = model.dual_tower_bridge = None
        model.audio_dit = AudioDiT(sizes.audio, ops, device)
    else:
        model = Mova(sizes, ops, device)
    if not fill:
        return model
    parts = [name for name in COMPONENTS if getattr(model, name) is not None]
    loaded = [name for name in parts if start is not None and name not in config.model.new]
    if set(parts) - set(loaded):
        # Drawn on the CPU: every device starts from the same weights.
        model.to("cpu").init_weights(generator(config.seed, "weights"))
        model.to(device)
    for name in loaded:
        load_component(getattr(model, name), start / name, device=device, dtype=torch.float32)
    return model


def export_model(model: Mova, codecs: Codecs, config: TrainConfig, folder: Path) -> None:
    """Write the model as a folder that the sampler loads; the audio tower alone as its component's folder.

    Pretrained codecs are copied from where they came, so that the checkpoint is complete.
    """
    if model.video_dit is None:
        write_component(
            model.audio_dit, component_configs(model.config)[AUDIO], folder / AUDIO, MODEL_CLASSES[AUDIO][1]
        )
        return
    diffusion = config.diffusion
    told = ("video_shift", "audio_shift", "prediction", "sigma_floor", "skip_first_frame")
    save_mova(
        model,
        folder,
        video_codec=codecs.video,
        audio_codec=codecs.audio,
        base=config.model.codecs or config.model.checkpoint,
        boundary=diffusion.boundary,
        diffusion={**{name: getattr(diffusion, name) for name in told}, "bridge": config.model.bridge},
    )
