"""Checks of the settings before any clip is read, since encoding a data set takes hours.

The sizes and names of weights come from the headers of safetensors files and from a model on the meta device.
"""

from collections.abc import Iterable
from pathlib import Path

import torch

from mova_engine.adapters.dialects import get_dialect
from mova_engine.adapters.lora import find_linears
from mova_engine.checkpoints.quantised_files import StoredComponent, open_component, refuse_quantised
from mova_engine.config.model import COMPONENTS, MovaConfig
from mova_engine.config.train import TrainConfig
from mova_engine.data.clip_sources import CACHE, home_of, read_clips
from mova_engine.data.metadata import MediaFile
from mova_engine.errors import MovaError, require_package
from mova_engine.files.byte_ranges import is_local
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import computes_in
from mova_engine.ops import DTYPES, OpTable
from mova_engine.train.fp8_watch import check_products
from mova_engine.train.lora_model import base_folder, check_output, initial_adapters
from mova_engine.train.model_setup import audio_only, outline, source_of
from mova_engine.train.run_folder import FOLDERS
from mova_engine.train.sample_scores import check_scores
from mova_engine.train.training_state import check_resumable


def check_folders(config: TrainConfig) -> None:
    """Check the run's folders before anything is written.

    Raises MovaError for metadata that cannot be read, and if the run's files would be among the user's clips.
    """
    out = config.folder.resolve()
    heldout = config.validation.data if config.validation.every else None
    if len(config.data) > 1:
        # Whether they fit together.
        read_clips(config.data, config.loader.cache)
    mixed = [("--mix", each.path) for each in config.mixed]
    for option, source in (*(("--data", each) for each in config.data), *mixed, ("--validation.data", heldout)):
        if source is None:
            continue
        clips, folder = read_clips(source, config.loader.cache), home_of(source)
        data = folder.resolve()
        if data == out and folder == source:
            raise MovaError(f"--out and {option} are the same folder, {folder}: give the run a folder of its own")
        for part in (out / name for name in FOLDERS):
            if data.is_relative_to(part):
                raise MovaError(f"{option} {source} lies where the run writes its {part.name}: give another --out")
        if out.is_relative_to(data / CACHE):
            raise MovaError(f"--out {config.folder} lies in the clips' cache, {folder / CACHE}: give another --out")
        if out.is_relative_to(data) and any(_lies_in(clip.path, out) for clip in clips):
            raise MovaError(f"--out {config.folder} holds clips of {option} {source}: give the run a folder of its own")


def _lies_in(file: MediaFile, folder: Path) -> bool:
    address = str(file) if isinstance(file, Path) else file.shard.address
    return is_local(address) and Path(address.removeprefix("file://")).resolve().is_relative_to(folder)


def check_before_work(config: TrainConfig, sizes: MovaConfig, ops: OpTable, resume: Path | None) -> None:
    """Raise MovaError for missing packages, and for adapters, an initial checkpoint, or a checkpoint to resume from
    that do not fit the run.
    """
    if config.log.tensorboard:
        require_package("tensorboard", "log.tensorboard", ", or give --log.no-tensorboard")
    require_package("matplotlib", "the loss curve")
    check_scores(config.validation)
    start = config.model.checkpoint
    if start is None and config.model.init_from_scratch:
        raise MovaError(f"{config.name} starts from other components' weights: give --model.checkpoint, their folder")
    if config.lora.rank:
        start = base_folder(config)
    _check_dtype(config, (config.memory.frozen,))
    model = Mova(sizes, ops, "meta")
    if config.task == "audio":
        audio_only(model)
    if config.lora.rank:
        check_output(config, base_folder(config))
        find_linears(model, config.lora.targets)
        for dialect in config.lora.export:
            get_dialect(dialect)
        initial_adapters(model, config.lora)
    check_products(config, model, ops)
    if resume is None or config.lora.rank:
        for name in COMPONENTS:
            component = getattr(model, name)
            source = source_of(name, config) if start is None or not config.lora.rank else start / name
            if component is not None and source is not None:
                stored = open_component(source)
                check_stored(config, stored)
                stored.fit(component)
    if resume is not None:
        bare = outline(model, torch.float32, config.lora)
        trained = {
            name: tuple(parameter.shape)
            for name, parameter in bare.named_parameters()
            if not config.lora.rank or ".lora_" in name
        }
        check_resumable(resume, trained, config.seed, config.optim.name, config.optim.moments)


def check_stored(config: TrainConfig, stored: StoredComponent) -> None:
    """MovaError where the formats of a component's weights do not go with the run."""
    if not config.lora.rank:
        refuse_quantised([stored], "all weights of this run are trained, and quantised ones cannot be")
    if config.parallel.shard:
        refuse_quantised([stored], "parallel.shard divides plain weights")
    stored.check_frozen(config.memory.frozen)
    _check_dtype(config, stored.formats)


def _check_dtype(config: TrainConfig, formats: Iterable[str]) -> None:
    """MovaError where activations cannot have the run's dtype beside weights in these formats."""
    for name in formats:
        if not computes_in(name, DTYPES[config.dtype]):
            held = f"memory.frozen {name}" if name == config.memory.frozen else f"{config.model.checkpoint} in {name}"
            raise MovaError(f"{held} computes in bfloat16, and dtype is {config.dtype}: give --dtype bfloat16")
