"""From a model folder to what a pipeline needs, on a device."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mova_engine.adapters.lora import load_lora
from mova_engine.backend import Backend
from mova_engine.checkpoints.folder import (
    Codecs,
    boundary_ratio,
    diffusion_settings,
    load_codecs,
    load_mova,
    mova_config_from_folder,
)
from mova_engine.checkpoints.integrity import damage, has_checksums
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.memory import MemoryConfig
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_json, stored_tensors
from mova_engine.inference.denoising import EXPERTS, LoopOptions
from mova_engine.memory.codec_parts import codec_parts
from mova_engine.memory.residency import Part, Residency
from mova_engine.models.mova import Mova
from mova_engine.ops import COMPUTE_DTYPES, OpTable, bind

SCHEDULER = Path("scheduler/scheduler_config.json")
# By safetensors' names.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """What sampling must know of a model's training. The defaults are the released models'.

    clean_first_frame: latent frame 0 was left out of the loss. bridge: there was one.
    """

    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    clean_first_frame: bool = False
    bridge: bool = True


def trained(folder: str | Path) -> Trained:
    """How the model in `folder` was trained: by our entry of its index, or its scheduler's config where there is none.

    MovaError when either does not say what it should.
    """
    folder = Path(folder)
    told, boundary = diffusion_settings(folder), boundary_ratio(folder)
    if not told:
        scheduler = folder / SCHEDULER
        shift = float(read_json(scheduler).get("shift", 5.0)) if scheduler.is_file() else 5.0
        return Trained(Schedule(shift, shift, boundary))
    try:
        return Trained(
            Schedule(told["video_shift"], told["audio_shift"], boundary),
            Prediction(told["prediction_type"], told["sigma_floor"]),
            told["skip_first_frame"],
            told["bridge"],
        )
    except (KeyError, TypeError) as error:
        raise MovaError(f"{folder / INDEX} does not say how the model was trained: {error!r}") from None


def _check_whole(folder: Path, place: Processes) -> None:
    """Read a training checkpoint's model through, each process a part: a flipped byte changes pictures, not headers."""
    if has_checksums(folder):
        found = place.all_gather_object(damage(folder, place.launch.rank, place.launch.world, training=False))
        wrong = next((each for each in found if each is not None), None)
        if wrong is not None:
            raise MovaError(f"{folder} is damaged: {wrong}: copy it again, or take another checkpoint of its run")


def own_codecs(processes: Processes) -> tuple[str, ...]:
    """Names of the codecs that this process needs: of those that make clips together, the first encodes words, all
    decode pictures, the last encodes pictures and decodes sound.
    """
    rank, size = processes.clip.rank, processes.clip.size
    return ("video", *(("text",) if rank == 0 else ()), *(("audio",) if rank == size - 1 else ()))


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that a pipeline takes, under the names of its fields."""

    mova: Mova
    codecs: Codecs
    schedule: Schedule
    prediction: Prediction
    options: LoopOptions
    clip: ClipConfig | None
    processes: Processes
    sharded: bool
    device: torch.device
    residency: Residency


def load_model(
    folder: str | Path,
    backend: Backend,
    *,
    dtype: torch.dtype | None = None,
    clip: ClipConfig | None = None,
    memory: MemoryConfig | None = None,
    lora: Path | None = None,
    lora_alpha: float | None = None,
    processes: Processes | None = None,
    shard: bool = False,
    config: MovaConfig | None = None,
) -> LoadedModel:
    """Load a model folder (see `checkpoints.locate.find_model`) with its codecs onto the backend's device.

    dtype: of towers and pretrained codecs; None: as stored. clip: shape of the clips instead of the model's own.
    config: the model, where `open_model` has been asked already.
    lora: a file of adapters to add; lora_alpha: where the file has none, or another is wanted.
    memory: where weights wait; None: the plain settings. processes: this one's place among several, which loads the
    codecs that it needs; shard: its part of the weights too.
    Raises MovaError for whatever is missing or damaged.
    """
    folder, place, memory = Path(folder), processes or Processes(), memory or MemoryConfig()
    memory.check("inference", shard)
    swapped = memory.expert == "host"
    _check_whole(folder, place)
    facts, device = trained(folder), backend.device(place.launch.local_rank)
    config = config or mova_config_from_folder(folder)
    dtypes = (dtype,) if dtype else _stored_dtypes(folder, config) or COMPUTE_DTYPES
    ops = place.operators(bind(backend, training=False, dtypes=dtypes))
    if shard:
        if lora is not None:
            raise MovaError(
                "shared weights take no adapters: merge them first (mova lora merge), or leave out parallel.shard"
            )
        mova = _load_sharded(folder, config, ops, device, dtype, memory, place)
    else:
        mova = load_mova(folder, ops, device="cpu" if swapped else device, dtype=dtype, config=config)
        if lora is not None:
            load_lora(mova, lora, lora_alpha)
        mova.requires_grad_(False)
        if swapped:
            staying = [mova.audio_dit, mova.dual_tower_bridge, *([] if mova.video_dit_2 else [mova.video_dit])]
            for component in staying:
                component.to(device)
    options = LoopOptions(facts.clean_first_frame, facts.bridge)
    codecs = load_codecs(folder, device=device, dtype=dtype, on_host=True, parts=own_codecs(place))
    parts = [*codec_parts(codecs, folder, dtype), *tower_parts(mova, swapped)]
    residency = Residency(device, parts)
    return LoadedModel(mova, codecs, facts.schedule, facts.prediction, options, clip, place, shard, device, residency)


def tower_parts(mova: Mova, swapped: bool) -> list[Part]:
    """The towers as parts of a residency. swapped: two experts come and go; the rest is on the device already."""
    modules = {name: getattr(mova, name) for name in COMPONENTS}
    moving = EXPERTS if swapped and mova.video_dit_2 is not None else ()
    return [Part(name, x, stays=name not in moving) for name, x in modules.items() if x is not None]


def _component_names(config: MovaConfig) -> list[str]:
    return [name for name in COMPONENTS if name != "video_dit_2" or config.experts == 2]


def _stored(folder: str | Path, config: MovaConfig) -> set[str]:
    """The dtypes of a folder's weights, as safetensors spells them. Reads headers alone."""
    names = _component_names(config)
    return {tensor.dtype for name in names for tensor in stored_tensors(Path(folder) / name).values()}


def _stored_dtypes(folder: Path, config: MovaConfig) -> tuple[torch.dtype, ...]:
    """What a model computes in that is loaded as it is stored; () where a dtype is none that the operators know."""
    stored = _stored(folder, config)
    return tuple(DTYPES[name] for name in sorted(stored)) if stored <= DTYPES.keys() else ()


def _load_sharded(
    folder: str | Path,
    config: MovaConfig,
    ops: OpTable,
    device: torch.device,
    dtype: torch.dtype | None,
    memory: MemoryConfig,
    place: Processes,
) -> Mova:
    """The model of which this process holds its rows; nothing else is read."""
    if dtype is None:
        stored = _stored(folder, config)
        if len(stored) > 1 or not stored <= DTYPES.keys():
            raise MovaError(f"{folder} holds weights in {', '.join(sorted(stored))}: shared weights need --dtype")
        dtype = DTYPES[stored.pop()]
    mova = Mova(config, ops, "meta", dtype)
    shards = shard_model(mova, place, device, dtype, memory.weights_on_host)
    with torch.no_grad():
        for name in _component_names(config):
            shards.load(getattr(mova, name), Path(folder) / name)
    return mova.requires_grad_(False)
