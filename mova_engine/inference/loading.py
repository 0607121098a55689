"""Loads the model, codecs and training facts of a model folder for a pipeline."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mova_engine.adapters.lora import apply_adapters, remove_lora
from mova_engine.backend import Backend
from mova_engine.checkpoints.folder import (
    Codecs,
    boundary_ratio,
    diffusion_settings,
    is_sound_alone,
    listed_components,
    load_codecs,
)
from mova_engine.checkpoints.integrity import damage, has_checksums
from mova_engine.checkpoints.quantised_files import StoredComponent, base_of, open_component, refuse_quantised
from mova_engine.checkpoints.released import INDEX
from mova_engine.codecs.umt5 import Umt5TextEncoder
from mova_engine.codecs.wan import WanVideoCodec
from mova_engine.codecs.wan_tiles import Tiles
from mova_engine.config.adapter_spec import AdapterSpec
from mova_engine.config.memory import VAE_STRIDE, VAE_TILE, MemoryConfig
from mova_engine.config.model import COMPONENTS, MovaConfig
from mova_engine.config.stages import TEXT_ENCODER, stages
from mova_engine.diffusion.prediction import Prediction
from mova_engine.diffusion.schedule import Schedule
from mova_engine.distributed.fsdp import shard_model
from mova_engine.distributed.processes import Processes
from mova_engine.errors import MovaError
from mova_engine.files.tensors import read_json
from mova_engine.inference.active_adapters import ActiveAdapters
from mova_engine.memory.model_parts import codec_parts, tower_parts
from mova_engine.memory.quantised import check_fits, hold_weights
from mova_engine.memory.residency import Residency
from mova_engine.memory.streamed_encoder import open_streamed_encoder
from mova_engine.memory.streamed_model import open_streamed
from mova_engine.models.mova import Mova
from mova_engine.models.weight_formats import computes_in, known_format
from mova_engine.ops import COMPUTE_DTYPES, OpTable, bind

log = logging.getLogger(__name__)
SCHEDULER = Path("scheduler/scheduler_config.json")
# By safetensors' names.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Trained:
    """What sampling must know about a model's training. The defaults are those of the released models.

    clean_first_frame: latent frame 0 was excluded from the loss. bridge: the model was trained with a bridge.
    start_frames: pictures of the beginnings that were given clean in training; 0: none were.
    """

    schedule: Schedule = field(default_factory=Schedule)
    prediction: Prediction = field(default_factory=Prediction)
    clean_first_frame: bool = False
    bridge: bool = True
    start_frames: int = 0


def trained(folder: str | Path) -> Trained:
    """Read how the model in `folder` was trained, from this engine's entry in its index, else from its scheduler
    config.

    Raises MovaError if a setting is missing or of the wrong type.
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
            # Checkpoints of before this was said were not trained so.
            told.get("start_frames", 0),
        )
    except (KeyError, TypeError) as error:
        raise MovaError(f"{folder / INDEX} does not say how the model was trained: {error!r}") from None


def check_whole(folder: Path, place: Processes) -> None:
    """Verify the checksums of a training checkpoint's model; each process reads a part of it. Raises MovaError if a
    file is damaged. Does nothing for a folder without checksums.
    """
    if has_checksums(folder):
        found = place.all_gather_object(damage(folder, place.launch.rank, place.launch.world, training=False))
        wrong = next((each for each in found if each is not None), None)
        if wrong is not None:
            raise MovaError(f"{folder} is damaged: {wrong}: copy it again, or take another checkpoint of its run")


def own_codecs(processes: Processes) -> tuple[str, ...]:
    """Names of the codecs that this process needs. Of the processes that make clips together, the first encodes
    prompts, all decode pictures, and the last encodes frames and decodes sound.
    """
    rank, size = processes.clip.rank, processes.clip.size
    return ("video", *(("text",) if rank == 0 else ()), *(("audio",) if rank == size - 1 else ()))


def open_parts(
    folder: Path,
    config: MovaConfig,
    backend: Backend,
    place: Processes,
    *,
    dtype: torch.dtype | None,
    memory: MemoryConfig,
    lora: Sequence[AdapterSpec],
    shard: bool,
) -> tuple[Mova, Codecs, Residency, ActiveAdapters | None]:
    """Open the model and the codecs that this process needs, the Residency that moves them, and the adapters, which
    sharded weights do not take. If memory.weights asks for it, layers of the towers and of the text encoder are
    streamed (`memory.streaming`).

    Weights stay on the meta device until the Residency reads them from `folder`, when the first stage that uses them
    starts. Sharded weights (`shard`) are read at once.
    dtype: of towers, pretrained video codec and text encoder; None: towers as stored, or bfloat16 beside quantised
    weights, the others in bfloat16. Raises MovaError for files that are missing, do not fit, or are damaged according
    to their headers and checksums.
    """
    memory.check("inference", shard)
    memory.check_decided()
    check_whole(folder, place)
    device = backend.device(place.launch.local_rank)
    sound = is_sound_alone(folder)
    if memory.weights != "device" or lora or shard:
        refuse_sound_alone(folder)
    names = listed_components(folder) if sound else _component_names(config)
    stored = {name: open_component(folder / name) for name in names}
    quantised = sorted({each for part in stored.values() for each in part.formats})
    codec_dtype = dtype
    dtype = compute_dtype(dtype, [*quantised, *(() if memory.frozen == "activations" else (memory.frozen,))])
    dtypes = (dtype,) if dtype else _dtypes_of(stored.values()) or COMPUTE_DTYPES
    ops = place.operators(bind(backend, training=False, dtypes=dtypes))
    waits = "files" if memory.idle == "files" else "host"
    adapters = None
    if shard:
        refuse_sharded(stored.values())
        if lora:
            raise MovaError(
                "sharded weights take no adapters: merge them first (mova lora merge), or leave out parallel.shard"
            )
        mova = _load_sharded(folder, config, ops, device, dtype, memory, place)
        towers = tower_parts(mova, None)
    elif memory.weights in ("host", "files"):
        mova = Mova(config, ops, "meta", dtype).requires_grad_(False)
        towers = open_streamed(mova, stored, device, dtype, memory.weights)
        adapters = ActiveAdapters(mova, folder, lora)
        for name in _component_names(config):
            # Adapters stay on the device while the layers beside them come and go.
            apply_adapters(getattr(mova, name), adapters.stack(name), f"{name}.", device=device)
        mova.requires_grad_(False)
    else:
        mova = Mova(config, ops, "meta", dtype).requires_grad_(False)
        for name in set(COMPONENTS) - set(names):
            setattr(mova, name, None)
        for name, part in stored.items():
            part.fit(getattr(mova, name), dtype)
        adapters = ActiveAdapters(mova, folder, lora)
        towers = tower_parts(mova, _reader(mova, stored, dtype, adapters, memory.frozen), waits)
    mova.chunk_rows = memory.chunk_rows
    check_tiles(memory, config, place.clip.size)
    wanted = tuple(name for name in own_codecs(place) if not (sound and name == "video"))
    codecs = load_codecs(folder, device=device, dtype=codec_dtype, weights_on="meta", parts=wanted)
    if memory.vae == "tiles" and isinstance(codecs.video, WanVideoCodec):
        codecs.video.tiles = Tiles(VAE_TILE)
    parts = [*codec_parts(codecs, folder, codec_dtype, text_waits=waits, vaes_wait=waits), *towers]
    if mova.streamed is not None and isinstance(codecs.text, Umt5TextEncoder):
        text = open_streamed_encoder(codecs.text, folder, device, codec_dtype or torch.bfloat16)
        parts = [text if part.name == TEXT_ENCODER else part for part in parts]
    residency = Residency(device, parts, stages(memory, experts=config.experts, sharded=shard))
    if adapters is not None:
        adapters.use(residency)
    return mova, codecs, residency, adapters


def refuse_sound_alone(folder: Path) -> None:
    """MovaError for a folder of an audio tower alone, where its weights are divided, streamed, planned or adapted."""
    if is_sound_alone(folder):
        raise MovaError(
            f"{folder} holds an audio tower alone, which is read as a whole and takes no adapters: leave out "
            "--memory.weights, --memory auto, --vram, --ram, --lora and parallel.shard"
        )


def check_tiles(memory: MemoryConfig, model: MovaConfig, processes: int) -> None:
    """MovaError where the video VAE cannot take pictures in tiles. processes: that make a clip together."""
    if memory.vae != "tiles":
        return
    clip, side = model.clip, VAE_TILE * VAE_STRIDE
    if model.video_codec != "wan":
        raise MovaError(f"memory.vae tiles: is for Wan's autoencoder; this model's codec is {model.video_codec}")
    if processes > 1:
        raise MovaError(
            "memory.vae tiles: the processes that make a clip together decode some of its rows each already"
        )
    if max(clip.height, clip.width) <= side:
        raise MovaError(f"memory.vae tiles: a clip of {clip.height}x{clip.width} has but one tile of {side} pixels")


def refuse_sharded(stored: Iterable[StoredComponent]) -> None:
    """MovaError where components cannot be divided among processes."""
    refuse_quantised(stored, "parallel.shard divides plain weights")


def compute_dtype(given: torch.dtype | None, formats: Sequence[str]) -> torch.dtype | None:
    """The dtype in which a model is computed whose layers are held in `formats`: the one given, else bfloat16 beside
    quantised weights, else None, the stored one. MovaError for a format that does not go with the one given.
    """
    for name in formats:
        if given is not None and not computes_in(name, given):
            raise MovaError(
                f"weights in {name} compute in bfloat16, not in {str(given).removeprefix('torch.')}: "
                "give --dtype bfloat16"
            )
    return given or (torch.bfloat16 if formats else None)


def _reader(
    mova: Mova,
    stored: Mapping[str, StoredComponent],
    dtype: torch.dtype | None,
    adapters: ActiveAdapters,
    frozen: str,
) -> Callable[[str, torch.device], None]:
    """Return the function (name, device) that reads a component of the model onto a device, brings its weights into the
    format `frozen` ("activations": leaves them) and attaches the adapters that are on.

    Raises MovaError now where weights are quantised that are to be.
    """
    for part in stored.values():
        part.check_frozen(frozen)
    if frozen != "activations":
        check_fits(mova, known_format(frozen), f"memory.frozen {frozen}")

    def read(name: str, device: torch.device) -> None:
        component = getattr(mova, name)
        remove_lora(component)
        stored[name].load(component, device=device, dtype=dtype)
        apply_adapters(component, adapters.stack(name), f"{name}.", keep=False)
        component.requires_grad_(False)
        if frozen != "activations":
            # After adapters: some of them change a weight itself.
            hold_weights(component, known_format(frozen))

    return read


def _component_names(config: MovaConfig) -> list[str]:
    return [name for name in COMPONENTS if name != "video_dit_2" or config.experts == 2]


def _stored(folder: str | Path, config: MovaConfig) -> set[str]:
    """The dtypes of a folder's plain weights, by safetensors' names. Reads only the files' headers."""
    parts = (open_component(Path(folder) / name) for name in _component_names(config))
    return {tensor.dtype for part in parts for tensor in part.plain.values()}


def stored_base(folder: Path, config: MovaConfig) -> str:
    """How a folder holds the weights of layers, as the planner counts them: "nf4", "int8" or "fp8"; "activations" for
    plain weights, several formats and others. Reads only the files' headers.
    """
    return base_of(open_component(Path(folder) / name) for name in _component_names(config))


def is_quantised(folder: Path, config: MovaConfig) -> bool:
    """Whether a folder holds quantised weights, of whatever format. Reads only the files' headers."""
    return any(open_component(Path(folder) / name).quantised for name in _component_names(config))


def stored_dtypes(folder: Path, config: MovaConfig) -> tuple[torch.dtype, ...]:
    """The dtypes of a folder's weights; () if one of them is not a dtype that the operators compute in."""
    return _dtypes_of(open_component(folder / name) for name in _component_names(config))


def _dtypes_of(components: Iterable[StoredComponent]) -> tuple[torch.dtype, ...]:
    stored = {tensor.dtype for part in components for tensor in part.plain.values()}
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
    """Build the sharded model; this process reads only its own rows of the weights."""
    if dtype is None:
        stored = _stored(folder, config)
        if len(stored) > 1 or not stored <= DTYPES.keys():
            raise MovaError(f"{folder} holds weights in {', '.join(sorted(stored))}: sharded weights need --dtype")
        dtype = DTYPES[stored.pop()]
    mova = Mova(config, ops, "meta", dtype)
    shards = shard_model(mova, place, device, dtype, memory)
    with torch.no_grad():
        for name in _component_names(config):
            shards.load(getattr(mova, name), Path(folder) / name)
    return mova.requires_grad_(False)
