"""Records of the forms in which a cache stores clips: precision, shape, codecs, treatment of silence.

The form is part of every entry's key, but a key is a hash, from which the form cannot be read. Each form is therefore
also written to a file. When a run asks for another form than the one in the cache, the difference can be reported
instead of silently encoding everything again.

    FOLDER/forms/abcd....json       the settings that clips of this form have in common
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Form = Mapping[str, Any]
# The trainer's options that choose a form, by the setting of the form; `mova encode` has them without "loader.".
_OPTIONS = {"dtype": "--loader.dtype", "silent": "--loader.silent-audio"}
_WORDS = {"video": "another video codec", "audio": "another audio codec", "version": "an older or newer engine"}


def form_path(folder: Path, form: Form) -> Path:
    """The file of a form's record."""
    return folder / "forms" / f"{hashlib.sha256(as_json(form)).hexdigest()}.json"


def as_json(form: Form) -> bytes:
    """The content of a form's record."""
    return json.dumps(form, sort_keys=True).encode()


def as_stored(form: Form) -> dict[str, Any]:
    """`form` as it would be read from its record: tuples become lists."""
    return json.loads(as_json(form))


def other_forms(folder: Path, form: Form) -> list[dict[str, Any]]:
    """Read the recorded forms other than `form`.

    Skips files that cannot be read. Skips forms of audio-only clips if `form` has pictures, and the reverse: those
    belong to another task.
    """
    found = []
    for path in sorted((folder / "forms").glob("*.json")):
        try:
            other = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        ours = isinstance(other, dict) and path.name == form_path(folder, other).name
        if ours and other != form and ("clip" in other) == ("clip" in form):
            found.append(other)
    return found


def difference(theirs: Form, ours: Form) -> str:
    """Describe in which settings `theirs` differs from `ours`, and the options that choose `theirs`, if there are
    any.
    """
    differs = [name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)]
    words = []
    for name in differs:
        if name in _OPTIONS:
            words.append(f"{name} {theirs.get(name)}, not {ours.get(name)}")
        elif name == "clip":
            words.append(f"{_shape(theirs[name])}, not {_shape(ours[name])}")
        else:
            words.append(f"with {_WORDS.get(name, f'another {name}')}")
    asked = " ".join(f"{_OPTIONS[name]} {theirs.get(name)}" for name in differs if name in _OPTIONS)
    can = f"; {asked} takes them" if asked and set(differs) <= _OPTIONS.keys() else ""
    return ", ".join(words) + can


def _shape(clip: Mapping[str, Any]) -> str:
    return f"{clip.get('frames')} frames of {clip.get('height')}x{clip.get('width')} at {clip.get('fps')} fps"
