"""`mova sample --manifest CLIP.json`: the settings of a clip that is made again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mova_engine.config.from_tools.translation import Translation
from mova_engine.config.launch import LaunchOptions
from mova_engine.errors import MovaError

MANIFEST = "mova_manifest"
_PICTURES = ("image", "last_image")


@dataclass(frozen=True)
class SampleOptions(LaunchOptions):
    """How the sampler is run."""

    manifest: Path | None = None
    """Make the clip of this manifest, CLIP.json, again: its settings, over which options win."""


def settings_in(path: Path, _: Mapping[str, str | None]) -> Translation:
    """The settings in a clip's manifest. MovaError for a file that is none."""
    if not path.is_file():
        raise MovaError(f"--manifest {path}: no such file")
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MovaError(f"--manifest {path}: no manifest of a clip ({error})") from None
    settings = cast(dict[str, Any], content).get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or MANIFEST not in content:
        raise MovaError(f"--manifest {path}: no manifest of a clip, as mova sample writes beside each: CLIP.json")
    if "request" in settings:
        raise MovaError(
            f"--manifest {path}: of an edit or extension by a server, with a request in place of a command's settings: "
            "send it to the server again"
        )
    found = cast(dict[str, Any], settings)
    # A served clip's pictures are beside its manifest.
    beside = {name: str(path.absolute().parent / found[name]) for name in _PICTURES if found.get(name)}
    return Translation({**found, **beside}, ())
