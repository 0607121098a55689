"""A whole MOVA checkpoint folder, as released: `model_index.json` and a sub-folder per component (diffusers layout).

What is downloaded loads without conversion, and what is saved loads there. The files of one component are
`mova_engine.files.tensors`' business; here is what the folders mean.

A folder of the audio tower alone, as its pre-training saves it, is such a folder too. It has neither video tower nor
bridge; its index lists them as absent, and holds the configurations of those that the tower was made for.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mova_engine.checkpoints.codec_entries import class_of, copy_component, kind_in, kinds_of, write_codec
from mova_engine.checkpoints.quantised_files import load_weights
from mova_engine.checkpoints.released import (
    ABSENT,
    BOUNDARY_RATIO,
    CODEC_CLASSES,
    EMBEDDED,
    INDEX,
    MODEL_CLASSES,
    OWN_ENTRY,
    RELEASED,
    SCHEDULER_CLASS,
    SCHEDULER_CONFIG,
    TOWER_OPTIONS,
)
from mova_engine.codecs import (
    AudioCodec,
    TextEncoder,
    VideoCodec,
    build_audio_codec,
    build_text_encoder,
    build_video_codec,
)
from mova_engine.config.clip import ClipSettings
from mova_engine.config.model import (
    COMPONENTS,
    PRESETS,
    AudioDiTConfig,
    BridgeConfig,
    ClipConfig,
    MovaConfig,
    SamplingConfig,
    VideoDiTConfig,
)
from mova_engine.errors import MovaError
from mova_engine.files.folders import replaced_folder
from mova_engine.files.tensors import (
    CONFIG,
    MAX_SHARD_BYTES,
    read_config,
    read_json,
    write_component,
    write_json,
)
from mova_engine.models.mova import Mova
from mova_engine.ops import OpTable


class Codecs(NamedTuple):
    """A checkpoint's video VAE, audio VAE and text encoder. None: loaded by another process of the group, not by this
    one.
    """

    video: VideoCodec | None
    audio: AudioCodec | None
    text: TextEncoder | None

    def encoders(self) -> tuple[VideoCodec | None, AudioCodec, TextEncoder]:
        """The three parts, for a process that encodes clips: audio and text are required, video only for pictures.

        Raises MovaError if the audio VAE or the text encoder is missing.
        """
        if self.audio is None or self.text is None:
            raise MovaError("encoding clips needs the audio VAE and the text encoder")
        return self.video, self.audio, self.text


def codecs_of(task: str) -> tuple[str, ...]:
    """The fields of `Codecs` that a training task needs: for "audio" all but the video's."""
    return tuple(name for name in Codecs._fields if task != "audio" or name != "video")


def is_sound_alone(folder: str | Path) -> bool:
    """Whether a model folder holds an audio tower alone."""
    folder = Path(folder)
    return bool(_absent(folder, read_json(folder / INDEX)))


def mova_config_from_folder(folder: str | Path, clip: ClipSettings = ClipSettings()) -> MovaConfig:  # noqa: B008
    """Return the model that a checkpoint folder holds; the components' config.json win over every default.

    Its clip is what `clip` states, over the folder's own (`own_clip`). Raises MovaError where the folder has none and
    `clip` states no height and width, for what is missing, and by name for options of the network that we do not have.
    """
    folder = Path(folder)
    own = own_clip(folder)
    if own is None and not clip.states_picture:
        raise MovaError(
            f"{folder} does not say the size of its clips, and '{released_name(folder)}' is no released model's name: "
            "give --clip.height 352 --clip.width 640, or 720 and 1280"
        )
    return _contents(folder, clip.over(own or RELEASED.clip))


def stated_clip(folder: str | Path) -> ClipConfig | None:
    """The clip that a folder's index states; None where it does not."""
    folder = Path(folder)
    own = _own_entry(folder, read_json(folder / INDEX))
    return _clip(own["clip"], folder) if "clip" in own else None


def released_name(folder: str | Path) -> str:
    """The name that a folder goes by: its own, or NAME of Hugging Face's `models--ORG--NAME/snapshots/COMMIT`."""
    folder = Path(folder).resolve()
    above = folder.parent.parent.name
    return above.split("--")[-1] if folder.parent.name == "snapshots" and above.startswith("models--") else folder.name


def own_clip(folder: str | Path) -> ClipConfig | None:
    """The clip that a folder was made for: what its index states, as in all that the engine saves. A released folder
    states none: the clip of the release by whose name it goes, see `released_name`; None for any other name.
    """
    release = PRESETS.get(released_name(folder).lower())
    return stated_clip(folder) or (release.clip if release is not None else None)


def listed_components(folder: str | Path) -> tuple[str, ...]:
    """The model's components that a folder's index lists."""
    index = read_json(Path(folder) / INDEX)
    return tuple(name for name in COMPONENTS if class_of(index, name))


def _own_entry(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    own = index.get(OWN_ENTRY, {})
    if not isinstance(own, dict):
        raise MovaError(f"{folder / INDEX}: {OWN_ENTRY} must be an object, got {own}")
    return own


def _absent(folder: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations of components that a folder does not hold, by name; empty for a whole model."""
    absent = _own_entry(folder, index).get("absent", {})
    if not isinstance(absent, dict) or not all(
        name in COMPONENTS and isinstance(v, dict) for name, v in absent.items()
    ):
        raise MovaError(f"{folder / INDEX}: {OWN_ENTRY}.absent must hold the configurations of components")
    return absent


def _contents(folder: Path, clip: ClipConfig) -> MovaConfig:
    index = read_json(folder / INDEX)
    own, absent = _own_entry(folder, index), _absent(folder, index)
    values = {name: read_config(folder / name) for name in COMPONENTS if class_of(index, name)} | absent
    for name in COMPONENTS:
        if name not in values and name != "video_dit_2":
            raise MovaError(f"{folder / INDEX} lists no {name}")

    def sizes(kind: Any, name: str, optional: tuple[str, ...] = ()) -> Any:
        return _config(kind, values[name], folder / (INDEX if name in absent else name), optional)

    video = sizes(VideoDiTConfig, "video_dit")
    if "video_dit_2" in values and sizes(VideoDiTConfig, "video_dit_2") != video:
        raise MovaError(f"{folder}: video_dit and video_dit_2 have different sizes")
    kinds = {name: own.get(name) or kind_in(folder, index, name) for name in CODEC_CLASSES}
    if index.get("audio_vae_type", kinds["audio_vae"]) != kinds["audio_vae"]:
        raise MovaError(f"{folder / INDEX}: audio_vae_type = {json.dumps(index['audio_vae_type'])} is not supported")
    return MovaConfig(
        name=own.get("name", released_name(folder)),
        video=video,
        audio=sizes(AudioDiTConfig, "audio_dit"),
        bridge=sizes(BridgeConfig, "dual_tower_bridge", optional=("interaction_layers", "aligned")),
        clip=clip,
        experts=2 if "video_dit_2" in values else 1,
        text_tokens=own.get("text_tokens", RELEASED.text_tokens),
        video_codec=kinds["video_vae"],
        audio_codec=kinds["audio_vae"],
        text_encoder=kinds["text_encoder"],
        sampling=_sampling(own, folder),
    )


def boundary_ratio(folder: str | Path) -> float:
    """Return the checkpoint's expert boundary: the high-noise expert serves timesteps >= 1000 * ratio."""
    return float(read_json(Path(folder) / INDEX).get("boundary_ratio", BOUNDARY_RATIO))


def diffusion_settings(folder: str | Path) -> dict[str, Any]:
    """Return what `save_mova` was told of the model's diffusion; empty for a released folder."""
    return dict(read_json(Path(folder) / INDEX).get(OWN_ENTRY, {}).get("diffusion", {}))


def load_mova(
    folder: str | Path,
    ops: OpTable,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    config: MovaConfig | None = None,
) -> Mova:
    """Return the checkpoint's model on `device`, in `dtype` (None: as stored). Every tensor must match. Quantised
    weights are held as they are stored.

    config: the model, where `mova_config_from_folder` has been asked already. Raises MovaError as it and
    `load_weights` do.
    """
    mova = Mova(config or mova_config_from_folder(folder), ops, device="meta")
    for name in COMPONENTS:
        if getattr(mova, name) is not None:
            load_weights(getattr(mova, name), Path(folder) / name, device=device, dtype=dtype)
    return mova


def load_codecs(
    folder: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    weights_on: torch.device | str | None = None,
    parts: Collection[str] = Codecs._fields,
) -> Codecs:
    """Return the checkpoint's video codec, audio codec and text encoder, of which `parts` are loaded. Pretrained video
    codecs and text encoders compute in `dtype` (None: bfloat16), audio codecs in float32, as the reference's do.
    weights_on: where their weights lie, `device` by default: "cpu" for a `Residency` to move,
    "meta" where they are yet to be read; what is missing is refused then too.
    """
    folder = Path(folder)
    if "video" in parts and is_sound_alone(folder):
        raise MovaError(f"{folder} holds an audio tower alone, and no video codec")
    # No codec depends on the clip's size, which the folder need not state.
    config = _contents(folder, RELEASED.clip)

    pretrained_on = device if weights_on is None else weights_on

    def source(name: str, kind: str) -> dict[str, Any]:
        if CODEC_CLASSES[name][kind][0] != EMBEDDED:
            return {
                "folder": folder / name,
                "device": pretrained_on,
                **({"dtype": dtype} if name == "video_vae" else {}),
            }
        state = {key: value for key, value in read_config(folder / name).items() if not key.startswith("_")}
        return {"state": state, "device": device}

    embedded_text = CODEC_CLASSES["text_encoder"][config.text_encoder][0] == EMBEDDED
    builders = {
        "video": lambda: build_video_codec(config.video_codec, **source("video_vae", config.video_codec)),
        "audio": lambda: build_audio_codec(config.audio_codec, **source("audio_vae", config.audio_codec)),
        "text": lambda: build_text_encoder(
            config.text_encoder,
            None if embedded_text else folder,
            tokens=config.text_tokens,
            dim=config.video.text_dim,
            device=device if embedded_text else pretrained_on,
            dtype=dtype,
        ),
    }
    return Codecs(**{name: build() if name in parts else None for name, build in builders.items()})


def save_mova(mova: Mova, folder: str | Path, **settings: Any) -> None:
    """Write a complete checkpoint folder, which must be new or empty; it appears when it is complete.

    settings: as of `write_mova`. Raises MovaError as that does, where the folder holds files, and when writing fails.
    """
    with replaced_folder(folder) as fresh:
        write_mova(mova, fresh, **settings)


def write_mova(
    mova: Mova,
    folder: Path,
    *,
    video_codec: VideoCodec | None = None,
    audio_codec: AudioCodec | None = None,
    base: str | Path | None = None,
    boundary: float | None = None,
    diffusion: Mapping[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    write: Callable[[Path, Mapping[str, Tensor]], None] | None = None,
) -> None:
    """`save_mova` into an empty folder, file by file: for use inside `replaced_folder`. Of a model without video tower
    and bridge, a folder of the audio tower alone.

    video_codec, audio_codec: needed where the model uses an embedded codec, whose fitted scale is stored.
    base: a checkpoint folder from which the rest is taken over: pretrained codecs, text encoder, tokenizer, scheduler,
    and entries of config files that we do not use. Without it pretrained components are listed as absent.
    boundary: the expert boundary that the model was trained with. diffusion: what else its sampler must know of the
    training, for `diffusion_settings`: video_shift, audio_shift, prediction_type, sigma_floor, skip_first_frame,
    bridge, start_frames.
    write: as of `write_component`.
    Raises MovaError as `write_component` does, and for an embedded codec that is needed but not given.
    """
    config = mova.config
    old = read_json(Path(base) / INDEX) if base is not None else {}
    codecs: dict[str, VideoCodec | AudioCodec | None] = {"video_vae": video_codec, "audio_vae": audio_codec}
    index: dict[str, Any] = {"_class_name": "MOVA", "boundary_ratio": BOUNDARY_RATIO, **old}
    absent: dict[str, dict[str, Any]] = {}
    for name, values in component_configs(config).items():
        if getattr(mova, name) is None:
            absent[name], index[name] = values, ABSENT
            continue
        kept = read_config(Path(base) / name) if base is not None and class_of(old, name) else {}
        write_component(
            getattr(mova, name), {**kept, **values}, folder / name, MODEL_CLASSES[name][1], max_shard_bytes, write
        )
        index[name] = old[name] if kept else MODEL_CLASSES[name]
    if config.experts == 1:
        index["video_dit_2"] = ABSENT
    kinds = kinds_of(config)
    for name, kind in kinds.items():
        wanted = name != "video_vae" or not absent
        index[name] = write_codec(name, kind, folder, codecs.get(name), base, old) if wanted else ABSENT
    for name in ("tokenizer", "scheduler"):
        index[name] = copy_component(name, folder, base, old)
    if index["scheduler"] == ABSENT:
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER_CONFIG)
        index["scheduler"] = SCHEDULER_CLASS
    index["audio_vae_type"] = config.audio_codec
    own = {"clip": asdict(config.clip), "sampling": asdict(config.sampling)}
    own |= {"absent": absent, "video_vae": kinds["video_vae"]} if absent else {}
    index[OWN_ENTRY] = {"name": config.name, "text_tokens": config.text_tokens, **own}
    if boundary is not None:
        index["boundary_ratio"] = boundary
    known = old.get(OWN_ENTRY, {}).get("diffusion") if diffusion is None else dict(diffusion)
    if known:
        index[OWN_ENTRY]["diffusion"] = known
    write_json(folder / INDEX, index)


def component_configs(config: MovaConfig) -> dict[str, dict[str, Any]]:
    """Return each model component's config.json values, with the options that the reference's classes ask for."""
    video = {**asdict(config.video), **TOWER_OPTIONS, "require_vae_embedding": True}
    audio = {**asdict(config.audio), **TOWER_OPTIONS, "require_vae_embedding": False, "vae_type": config.audio_codec}
    bridge = asdict(config.bridge)
    if config.bridge.interaction_layers is None:
        del bridge["interaction_layers"]  # our own key: the reference's "custom" has one fixed list
    if config.bridge.aligned:
        del bridge["aligned"]  # our own key, for ablations
    experts = {"video_dit": video, "video_dit_2": video} if config.experts == 2 else {"video_dit": video}
    return {**experts, "audio_dit": audio, "dual_tower_bridge": bridge}


def _config(kind: Any, stored: Mapping[str, Any], place: Path, optional: tuple[str, ...] = ()) -> Any:
    """A configuration dataclass from the values that `place` states of a component; keys that it does not have are
    ignored. MovaError for options of the network that we do not have.
    """
    place = place if place.name == INDEX else place / CONFIG
    for key, ours in TOWER_OPTIONS.items():
        if stored.get(key, ours) != ours:
            raise MovaError(f"{place}: {key} = {json.dumps(stored[key])} is not supported")
    if stored.get("vae_type") == "oobleck":
        raise MovaError(f'{place}: vae_type = "oobleck" is not supported; our audio codecs are dac and mdct')
    missing = [field.name for field in fields(kind) if field.name not in stored and field.name not in optional]
    if missing:
        raise MovaError(f"{place} lacks {', '.join(missing)}")
    values = {field.name: stored[field.name] for field in fields(kind) if field.name in stored}
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (MovaError, TypeError) as error:
        raise MovaError(f"{place}: {error}") from error


def _clip(values: Mapping[str, Any], folder: Path) -> ClipConfig:
    try:
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return ClipConfig(**given)
    except (MovaError, TypeError) as error:
        raise MovaError(f"{folder / INDEX}: {OWN_ENTRY}.clip: {error}") from error


def _sampling(own: Mapping[str, Any], folder: Path) -> SamplingConfig:
    """How the model is sampled unless told otherwise; folders of older versions: by the model's name."""
    if "sampling" not in own:
        return PRESETS.get(str(own.get("name")), RELEASED).sampling
    try:
        return SamplingConfig(**own["sampling"])
    except (MovaError, TypeError) as error:
        raise MovaError(f"{folder / INDEX}: {OWN_ENTRY}.sampling: {error}") from error
