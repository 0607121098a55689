"""What a user may name where a model or adapters are wanted, and the folder or file that it means.

Every command asks here, so that a folder means the same in each of them:

    a model folder                              itself: `model_index.json` and a folder per component
    a folder of an audio tower alone            the same, where sound is made or trained; elsewhere it is refused
    a training run, or its `checkpoints`        its newest whole checkpoint
    a checkpoint of it, `step-001000`           itself
    a folder of Hugging Face's cache            `models--ORG--NAME`, its `snapshots`, or a snapshot: what is downloaded
    where adapters are wanted: the same, or     the file `adapters.safetensors`, or the only one that there is
    a file of adapters
"""

import logging
import os
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from mova_engine.checkpoints.folder import (
    is_sound_alone,
    listed_components,
    mova_config_from_folder,
    own_clip,
    released_name,
    stated_clip,
)
from mova_engine.checkpoints.released import INDEX
from mova_engine.config.clip import ClipSettings, clip_words
from mova_engine.config.model import COMPONENTS, ClipConfig, MovaConfig
from mova_engine.errors import MovaError
from mova_engine.files.tensors import CONFIG, read_json, stored_tensors, tensors_of_file

# What a training run writes: RUN/checkpoints/step-NNNNNN, each a model folder, or adapters, or an audio tower; beside
# it TRAINING/STATE with the run's configuration.
CHECKPOINTS, TRAINING, STATE = "checkpoints", "training", "state.json"
# A file of adapters, in a checkpoint of a LoRA run or alone.
ADAPTERS = "adapters.safetensors"
AUDIO = "audio_dit"
# Hugging Face's cache: models--ORG--NAME/snapshots/COMMIT, and refs/main with the commit of the newest download.
_HUB, _SNAPSHOTS, _MAIN = "models--", "snapshots", Path("refs", "main")
_STEP = re.compile(r"step-(\d+)")
_CLIP_LISTS = ("metadata.jsonl", "metadata.json")
_SHOWN = 3

Say = Callable[[str], object]
log = logging.getLogger(__name__)


class Located(NamedTuple):
    """A model folder and the model that it holds."""

    folder: Path
    config: MovaConfig


def open_model(
    path: str | Path,
    clip: ClipSettings = ClipSettings(),  # noqa: B008
    say: Say = log.warning,
    sound: bool = False,
) -> Located:
    """The model that `path` means, see above. clip: as of `mova_config_from_folder`. sound: an audio tower alone will
    do, if codecs are with it.

    say: told in a line of each choice that was not the user's: an older checkpoint, a clip's size by the folder's name;
    and of a clip that is not the folder's own.
    Raises MovaError that says what `path` is instead and what to name, and as `mova_config_from_folder`.
    """
    folder = _found(path, ("model", "sound"), say) if sound else find_model(path, say)
    config = mova_config_from_folder(folder, clip)
    if not clip.states_picture and stated_clip(folder) is None:
        shape = clip_words(config.clip)
        say(f"{folder} does not say the size of its clips: by its name, {released_name(folder)}, {shape}")
    say_other_clip(folder, config.clip, say)
    return Located(folder, config)


def say_other_clip(folder: Path, clip: ClipConfig, say: Say) -> None:
    """Tell `say` where a model folder was made for clips of another size than `clip`."""
    own = own_clip(folder)
    if own not in (None, clip):
        say(f"{folder} was made for {clip_words(own)}; this run takes {clip_words(clip)}")


def find_model(path: str | Path, say: Say = log.warning) -> Path:
    """The model folder that `path` means. `say` and errors as of `open_model`."""
    return _found(path, ("model",), say)


def find_components(path: str | Path, say: Say = log.warning) -> Path:
    """The same, or an audio tower alone, or a folder of components without an index: what training may start from."""
    return _found(path, ("model", "sound", "components"), say)


def find_adapters(path: str | Path, say: Say = log.warning) -> Path:
    """The file of adapters that `path` means, see above."""
    if os.path.isfile(path):
        return Path(path)
    folder = _found(path, ("adapters", "file"), say)
    return folder / ADAPTERS if (folder / ADAPTERS).is_file() else next(folder.glob("*.safetensors"))


def with_index(folder: Path | None) -> Path | None:
    """A folder of components, if it has an index, and so may have codecs; else None."""
    return folder if folder is not None and (folder / INDEX).is_file() else None


def checkpoints_in(run: Path) -> list[tuple[int, Path]]:
    """The folders `step-N` of a run, or of its folder `checkpoints`, as (N, folder), oldest first."""
    parent = run if run.resolve().name == CHECKPOINTS else run / CHECKPOINTS
    return sorted((int(m[1]), child) for child in parent.glob("step-*") if (m := _STEP.fullmatch(child.name)))


def _found(path: str | Path, wanted: Collection[str], say: Say) -> Path:
    path = Path(path)
    try:
        if not path.is_dir():
            raise MovaError(_no_folder(path, wanted))
        folder = _snapshot(path)
        kind = _kind(folder)
        if kind is None and (steps := checkpoints_in(folder)):
            folder, kind = _newest_whole(steps, say)
        if kind in wanted:
            return folder
        raise MovaError(_other(folder, kind, wanted))
    except OSError as error:
        # No permission, a name that is too long, a disk that is gone.
        raise MovaError(f"{path}: cannot be read ({error.strerror or error})") from error


def _kind(folder: Path) -> str | None:
    """What a folder holds, by its files: "model", "sound" (an audio tower alone, with its codecs), "adapters",
    "components" without an index, one "file", or None.
    """
    if (folder / INDEX).is_file():
        try:
            return "sound" if is_sound_alone(folder) else "model"
        except MovaError:  # reported where the index is read
            return "model"
    if (folder / ADAPTERS).is_file():
        return "adapters"
    if any((folder / name / CONFIG).is_file() for name in COMPONENTS):
        return "components"
    # Adapters that are downloaded have any name; a component's file has a configuration beside it.
    alone = len(list(folder.glob("*.safetensors"))) == 1 and not (folder / CONFIG).is_file()
    return "file" if alone else None


def _newest_whole(steps: list[tuple[int, Path]], say: Say) -> tuple[Path, str]:
    reasons = []
    for _, folder in reversed(steps):
        kind = _kind(folder)
        reason = _lack(folder, kind)
        if reason is None and kind is not None:
            if reasons:
                say(f"{reasons[0]}: taking {folder}, the newest whole checkpoint")
            return folder, kind
        reasons.append(reason)
    raise MovaError(f"{steps[-1][1].parent} has no whole checkpoint: {reasons[0]}")


def _lack(folder: Path, kind: str | None) -> str | None:
    """Why a checkpoint is not whole, by its headers; None where it is."""
    if kind in (None, "file"):
        return f"{folder} holds no {INDEX}, no {ADAPTERS} and no {AUDIO}"
    try:
        if kind in ("model", "sound"):
            for name in listed_components(folder):
                stored_tensors(folder / name)
        elif kind == "components":
            for name in COMPONENTS:
                if (folder / name / CONFIG).is_file():
                    stored_tensors(folder / name)
        else:
            tensors_of_file(folder / ADAPTERS)
    except MovaError as error:
        return str(error)
    return None


def _snapshot(path: Path) -> Path:
    """What a folder of Hugging Face's cache means; any other folder itself."""
    if path.resolve().name == _SNAPSHOTS and path.resolve().parent.name.startswith(_HUB):
        path = path.resolve().parent
    if not (path / _SNAPSHOTS).is_dir() or not path.resolve().name.startswith(_HUB):
        return path
    there = sorted(child for child in (path / _SNAPSHOTS).iterdir() if child.is_dir())
    if (path / _MAIN).is_file():
        commit = (path / _MAIN).read_text(encoding="utf-8").strip()
        if commit and path / _SNAPSHOTS / commit in there:
            return path / _SNAPSHOTS / commit
        raise MovaError(f"{path / _MAIN} means snapshot '{commit}', which is not there: download the model again")
    if len(there) == 1:
        return there[0]
    names = ", ".join(str(child.relative_to(path)) for child in there[:_SHOWN])
    raise MovaError(f"{path} has {len(there)} snapshots and no {_MAIN}{': name one of ' + names if names else ''}")


def _no_folder(path: Path, wanted: Collection[str]) -> str:
    if path.is_file():
        here = f", such as {path.parent}" if _kind(path.parent) in wanted else ""
        if path.name == ADAPTERS:
            return f"{path} holds adapters, no model: name {_base(path.parent)} (sample and merge add --lora {path})"
        return f"{path} is a file: a {_words(wanted)} is a folder{here}"
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is not there"
    if path.exists():
        return f"{path} is no folder: a {_words(wanted)} is wanted"
    near = next((parent for parent in path.parents if parent.is_dir()), None)
    where = "" if near in (None, path.parent, Path()) else f" (of its path, {near} is there)"
    return f"{path}: no such folder{where}"


def _other(folder: Path, kind: str | None, wanted: Collection[str]) -> str:
    """Why `folder` is not what is wanted, and what to name."""
    what = _words(wanted)
    if kind == "adapters":
        return f"{folder} holds adapters, no {what}: name {_base(folder)} (sample and merge add --lora {folder})"
    if kind == "sound":
        return f"{folder} holds an audio tower alone, which makes no clips (sound: mova sample --audio-alone)"
    if kind == "components":
        there = [name for name in COMPONENTS if (folder / name).is_dir()]
        has = "an audio tower alone, which makes no clips" if there == [AUDIO] else f"components ({', '.join(there)})"
        return f"{folder} holds {has}, and no {INDEX}: a {what} is wanted"
    if kind == "model":
        return f"{folder} is a whole model, no {what}: name a LoRA run, its checkpoint or a file of adapters"
    lacks = f"it has no {ADAPTERS if 'adapters' in wanted else INDEX} and is no training run ({CHECKPOINTS}/step-*)"
    if (folder / CONFIG).is_file() and (folder.resolve().parent / INDEX).is_file():
        return f"{folder} is one component of a model: name the folder above it, {folder.resolve().parent}"
    if any((folder / name).is_file() for name in _CLIP_LISTS):
        return f"{folder} holds clips, no {what}: {lacks}"
    inside = [child for child in sorted(folder.iterdir()) if child.is_dir() and _holds(child, wanted)]
    if inside:
        more = ", ..." if len(inside) > _SHOWN else ""
        return f"{folder} is no {what}, but holds {', '.join(map(str, inside[:_SHOWN]))}{more}: name that"
    several = [file.name for file in sorted(folder.glob("*.safetensors"))]
    if "adapters" in wanted and len(several) > 1:
        return f"{folder} holds {len(several)} files: name one of {', '.join(several[:_SHOWN])}"
    return f"{folder} is no {what}: {lacks}"


def _holds(folder: Path, wanted: Collection[str]) -> bool:
    return _kind(folder) in wanted or bool(checkpoints_in(folder)) or folder.name.startswith(_HUB)


def _words(wanted: Collection[str]) -> str:
    return "file or run of adapters" if "adapters" in wanted else "model folder"


def _base(adapters: Path) -> str:
    """What the adapters in a checkpoint were trained on, as far as its run says."""
    try:
        base = read_json(adapters / TRAINING / STATE)["config"]["model"]["checkpoint"]
    except (MovaError, KeyError, TypeError):
        base = None
    return f"the model that they were trained on, {base}" if base else "the model that they were trained on"
