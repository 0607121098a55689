"""The forms in which a cache's clips are stored: precision, shape, codecs, silence. They are part of every key, and a
key does not tell them, so each is also written down once: a cache that was filled in another form than a run asks for
can then be named, instead of being filled a second time silently.

    FOLDER/forms/abcd....json       what clips of this form have in common
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Form = Mapping[str, Any]
# Options of the trainer that ask for another form, by what they change; `mova encode` has them without the group.
_OPTIONS = {"dtype": "--loader.dtype", "silent": "--loader.silent-audio"}
_WORDS = {"video": "another video codec", "audio": "another audio codec", "version": "an older or newer engine"}


def form_path(folder: Path, form: Form) -> Path:
    """Where a form is written down."""
    return folder / "forms" / f"{hashlib.sha256(as_json(form)).hexdigest()}.json"


def as_json(form: Form) -> bytes:
    """The file's content."""
    return json.dumps(form, sort_keys=True).encode()


def as_stored(form: Form) -> dict[str, Any]:
    """`form` as it is read again: lists in the place of tuples."""
    return json.loads(as_json(form))


def other_forms(folder: Path, form: Form) -> list[dict[str, Any]]:
    """The forms that clips have been stored in, but for `form`; files that cannot be read are passed over, and so are
    forms of sound alone where `form` has pictures, and the other way round: they serve another task.
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
    """In which respects clips are stored otherwise, and the option that asks for theirs, where one does."""
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
