"""From a model folder to a pipeline on a device."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from mova_engine.adapters.lora import load_lora
from mova_engine.backend import Backend
from mova_engine.checkpoints.folder import (
    INDEX,
    boundary_ratio,
    diffusion_settings,
    load_codecs,
    load_mova,
    mova_config_from_folder,
)
from mova_engine.checkpoints.integrity import damage, has_checksums
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_json, stored_tensors
from mova_engine.inference.denoising import LoopOptions
from mova_engine.inference.pipeline import Pipeline, own_codecs
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
            Prediction(told["prediction"], told["sigma_floor"]),
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


def load_pipeline(
    folder: str | Path,
    backend: Backend,
    *,
    dtype: torch.dtype | None = None,
    clip: ClipConfig | None = None,
    offload: bool = False,
    lora: Path | None = None,
    lora_alpha: float | None = None,
    processes: Processes | None = None,
    shard: bool = False,
    config: MovaConfig | None = None,
) -> Pipeline:
    """Load a model folder (see `models.locate.find_model`) with its codecs onto the backend's device.

    dtype: of towers and pretrained codecs; None: as stored. clip: shape of the clips instead of the model's own.
    config: the model, where `open_model` has been asked already.
    lora: a file of adapters to add; lora_alpha: where the file has none, or another is wanted.
    offload: of two experts only the one in use lies on the device. processes: this one's place among several, which
    loads the codecs that it needs; shard: its part of the weights too, of which with offload none stays on the device.
    Raises MovaError for whatever is missing or damaged.
    """
    folder, place = Path(folder), processes or Processes()
    _check_whole(folder, place)
    facts, device = trained(folder), backend.device(place.launch.local_rank)
    ops = place.operators(bind(backend, training=False, dtypes=(dtype,) if dtype else COMPUTE_DTYPES))
    if shard:
        if lora is not None:
            raise MovaError(
                "shared weights take no adapters: merge them first (python -m mova_engine.adapters.merge), "
                "or leave out parallel.shard"
            )
        mova = _load_sharded(folder, config or mova_config_from_folder(folder), ops, device, dtype, offload, place)
    else:
        mova = load_mova(folder, ops, device="cpu" if offload else device, dtype=dtype, config=config)
        if lora is not None:
            load_lora(mova, lora, lora_alpha)
        mova.requires_grad_(False)
        if offload:
            staying = [mova.audio_dit, mova.dual_tower_bridge, *([] if mova.video_dit_2 else [mova.video_dit])]
            for component in staying:
                component.to(device)
    options = LoopOptions(facts.clean_first_frame, facts.bridge, offload=offload and not shard)
    codecs = load_codecs(folder, device=device, dtype=dtype, parts=own_codecs(place))
    return Pipeline(mova, codecs, facts.schedule, facts.prediction, options, clip, place, shard, device)


def _load_sharded(
    folder: str | Path,
    config: MovaConfig,
    ops: OpTable,
    device: torch.device,
    dtype: torch.dtype | None,
    offload: bool,
    place: Processes,
) -> Mova:
    """The model of which this process holds its rows; nothing else is read."""
    names = [name for name in COMPONENTS if name != "video_dit_2" or config.experts == 2]
    if dtype is None:
        stored = {tensor.dtype for name in names for tensor in stored_tensors(Path(folder) / name).values()}
        if len(stored) > 1 or not stored <= DTYPES.keys():
            raise MovaError(f"{folder} holds weights in {', '.join(sorted(stored))}: shared weights need --dtype")
        dtype = DTYPES[stored.pop()]
    mova = Mova(config, ops, "meta", dtype)
    shards = shard_model(mova, place, device, dtype, offload)
    with torch.no_grad():
        for name in names:
            shards.load(getattr(mova, name), Path(folder) / name)
    return mova.requires_grad_(False)
