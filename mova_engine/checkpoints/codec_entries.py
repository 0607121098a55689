"""Codecs, text encoder and tokenizer in a checkpoint folder: which kind an index lists, and how they are written."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mova_engine.checkpoints.released import ABSENT, CODEC_CLASSES, EMBEDDED, INDEX
from mova_engine.codecs import AudioCodec, VideoCodec
from mova_engine.config.model import MovaConfig
from mova_engine.errors import MovaError
from mova_engine.files.tensors import CONFIG, write_json


def class_of(index: Mapping[str, Any], name: str) -> str | None:
    """Class name of an entry of model_index.json; None where the component is absent."""
    entry = index.get(name) or ABSENT
    if not isinstance(entry, list | tuple) or len(entry) != 2:
        raise MovaError(f"{INDEX}: {name} must be [library, class], got {entry}")
    return entry[1]


def kinds_of(config: MovaConfig) -> dict[str, str]:
    """The kind of each codec and of the text encoder, by its name in the index."""
    return {"video_vae": config.video_codec, "audio_vae": config.audio_codec, "text_encoder": config.text_encoder}


def kind_in(folder: Path, index: Mapping[str, Any], name: str) -> str:
    """Kind of a codec or text encoder by its class; the released one where the folder was saved without it."""
    known = {entry[1]: kind for kind, entry in CODEC_CLASSES[name].items()}
    found = class_of(index, name)
    if found is None:
        return next(iter(known.values()))
    if found not in known:
        raise MovaError(f"{folder / INDEX}: {name} is of class {found}; known are {', '.join(known)}")
    return known[found]


def copy_component(
    name: str, fresh: Path, base: str | Path | None, old: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Take a component over from `base`; returns its entry in the index."""
    if base is None or class_of(old, name) is None:
        return ABSENT
    shutil.copytree(Path(base) / name, fresh / name)
    return old[name]


def write_codec(
    name: str,
    kind: str,
    fresh: Path,
    codec: VideoCodec | AudioCodec | None,
    base: str | Path | None,
    old: Mapping[str, Any],
) -> tuple[str | None, str | None]:
    """Write an embedded codec's config.json, or take a pretrained one over; returns its entry in the index."""
    library, class_name = CODEC_CLASSES[name][kind]
    if library != EMBEDDED:
        return copy_component(name, fresh, base, old) if class_of(old, name) == class_name else ABSENT
    if codec is not None and type(codec).__name__ != class_name:
        raise MovaError(f"the model's {name} is a {class_name}, got a {type(codec).__name__}")
    if codec is None and name != "text_encoder":
        if class_of(old, name) != class_name:
            raise MovaError(f"saving this model needs its {name} ({class_name}): its fitted scale belongs to the model")
        return copy_component(name, fresh, base, old)
    (fresh / name).mkdir()
    write_json(fresh / name / CONFIG, {"_class_name": class_name, **(codec.state() if codec is not None else {})})
    return library, class_name
