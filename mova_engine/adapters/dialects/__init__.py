"""The dialects, one file each. Order is that in which a file is looked at: the first that recognises it reads it."""

import importlib
from collections.abc import Mapping

from mova_engine.adapters.dialect import Dialect
from mova_engine.adapters.stored_file import StoredFile
from mova_engine.errors import MovaError, suggest

# Name -> the module that has it as DIALECT.
DIALECTS: Mapping[str, str] = {
    "mova-engine": "mova_engine.adapters.dialects.own",
    "mova-low-resource": "mova_engine.adapters.dialects.mova_low_resource",
    "mova": "mova_engine.adapters.dialects.mova_accelerate",
    "peft": "mova_engine.adapters.dialects.peft",
    "diffusers": "mova_engine.adapters.dialects.diffusers",
    "videox-kohya": "mova_engine.adapters.dialects.videox_kohya",
    "musubi": "mova_engine.adapters.dialects.musubi",
    "lightx2v": "mova_engine.adapters.dialects.lightx2v",
    "lightning": "mova_engine.adapters.dialects.lightning",
    "comfy": "mova_engine.adapters.dialects.comfy",
    "videox-peft": "mova_engine.adapters.dialects.videox_peft",
    "diffsynth": "mova_engine.adapters.dialects.diffsynth",
}


def get_dialect(name: str) -> Dialect:
    """The named dialect. Raises MovaError for an unknown name, and names the dialect of that tool, or the nearest."""
    if name not in DIALECTS:
        of_tool = [known for known in DIALECTS if name and name.lower() in get_dialect(known).about.lower()]
        near = f" Did you mean '{of_tool[0]}'?" if of_tool else suggest(name, DIALECTS)
        raise MovaError(f"unknown dialect '{name}'.{near} Known: {', '.join(DIALECTS)}")
    return importlib.import_module(DIALECTS[name]).DIALECT


def recognised(file: StoredFile) -> Dialect:
    """The dialect of a file. MovaError, with some of its keys, where it is of none."""
    for name in DIALECTS:
        dialect = get_dialect(name)
        if dialect.recognises(file):
            return dialect
    keys = sorted(file.tensors)
    shown = f"its keys are {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}" if keys else "it is empty"
    raise MovaError(f"{file.path} is no LoRA file of a dialect that is known ({', '.join(DIALECTS)}): {shown}")
