"""Reads the list of clips of a folder: a metadata file, or captions in text files beside the clips.

`metadata.jsonl` holds one JSON object per line, `metadata.json` (the reference's format) a list of the same objects:

    {"video_path": "clips/0001.mp4", "caption": "a red ball bouncing on the floor", "id": "0001", "start": 2.5}

`video_path` is relative to the folder. `id` names the clip in logs and batches (default: the path, plus the start if it
is not 0). `start` (default 0) is the time in the file at which the clip begins, in seconds. Other keys are ignored.
Values that later steps cannot use are errors here: text that cannot be encoded, a start beyond any file's length.

Without a metadata file every video and sound file of the folder is a clip, in the order of their names, and `a.txt` is
the caption of `a.mp4`. Folders inside it are not searched.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mova_engine.data.text import flaw, read_text, shown
from mova_engine.errors import MovaError

FILES = ("metadata.jsonl", "metadata.json")
# The suffix of a clip's caption, and those of the files that are clips, where no metadata file lists them.
CAPTION = ".txt"
MEDIA = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mxf", ".ogv", ".ts"}
    | {".webm", ".wmv", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}
)
# Seconds (30 years). No file is as long, and the clocks of containers do not count much further.
LATEST_START = 1e9


@dataclass(frozen=True)
class Entry:
    """One clip. path: its file. id: unique in the folder. start: seconds after the file's first picture."""

    path: Path
    caption: str
    id: str
    start: float = 0.0


def read_metadata(folder: str | Path) -> list[Entry]:
    """Read a folder's list of clips, in its order. The clips' files are not opened.

    Raises MovaError of one line that names the file, the line (or the item of a .json list) and the key, or the clip
    that has no caption.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "a file, not a folder of clips" if folder.exists() else "no such folder"
        raise MovaError(f"{folder}: {what}")
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if not found:
        return _captioned(folder)
    if len(found) > 1:
        raise MovaError(f"{folder}: must hold one of {FILES[0]} and {FILES[1]}, has both")
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for place, row in _rows(found[0]):
        entry = _entry(folder, place, row)
        if entry.id in places:
            taken = f"id '{shown(entry.id)}' is taken by {places[entry.id]}"
            raise MovaError(f"{place}: {taken}: give each of them an 'id' of its own")
        places[entry.id] = place.rpartition(": ")[2]
        entries.append(entry)
    if not entries:
        raise MovaError(f"{found[0]}: lists no clips")
    return entries


def _captioned(folder: Path) -> list[Entry]:
    """The clips of a folder without a metadata file."""
    files = sorted(folder.iterdir(), key=lambda path: path.name)
    clips = [path for path in files if path.suffix.lower() in MEDIA and path.name[0] != "." and path.is_file()]
    if not clips:
        raise MovaError(
            f"{folder}: must hold one of {FILES[0]} and {FILES[1]}, or clips with their captions beside them "
            f"(a.mp4, a{CAPTION}); has none"
        )
    bare = [path for path in clips if not path.with_suffix(CAPTION).is_file()]
    if bare:
        which = bare[0] if len(bare) == 1 else f"{bare[0]} (one of {len(bare)})"
        wanted = bare[0].with_suffix(CAPTION).name
        raise MovaError(f"{which}: has no caption: write it to {wanted}, or list the clips in {FILES[0]}")
    return [_with_caption(path) for path in clips]


def _with_caption(path: Path) -> Entry:
    if reason := flaw(path.name, name=True):
        raise MovaError(f"{path.parent / shown(path.name)}: its name {reason}")
    return Entry(path, read_text(path.with_suffix(CAPTION)).strip(), path.name)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield (place for error messages, parsed value) of each line or item."""
    text = read_text(path)
    if path.suffix == ".json":
        items = _parse(str(path), text)
        if not isinstance(items, list):
            raise MovaError(f"{path}: must be a list of objects, got {type(items).__name__}")
        yield from ((f"{path}: item {number}", item) for number, item in enumerate(items, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{path}: line {number}", _parse(f"{path}: line {number}", line)


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise MovaError(f"{place}: not valid JSON (nested too deeply)") from None
    except ValueError as error:
        raise MovaError(f"{place}: not valid JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if any(key == k for k, _ in pairs[:number]))
        raise ValueError(f"key '{shown(twice)}' occurs twice in one object")
    return row


def _entry(folder: Path, place: str, row: Any) -> Entry:
    if not isinstance(row, dict):
        raise MovaError(f"{place}: must be an object with video_path and caption, got {type(row).__name__}")
    path, caption = _text(place, row, "video_path", name=True), _text(place, row, "caption")
    start = row.get("start", 0.0)
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start <= LATEST_START:
        got = _described(start)
        raise MovaError(f"{place}: key 'start' must be seconds from 0 up to {LATEST_START:g}, got {got}")
    identity = _text(place, row, "id", name=True) if "id" in row else path + (f"@{start:.15g}" if start else "")
    return Entry(folder / path, caption, identity, float(start))


def _text(place: str, row: dict, key: str, *, name: bool = False) -> str:
    if key not in row:
        raise MovaError(f"{place}: key '{key}' is missing (it has: {shown(', '.join(row)) or 'none'})")
    value = row[key]
    if not isinstance(value, str):
        raise MovaError(f"{place}: key '{key}' must be text, got {_described(value)}")
    reason = flaw(value, name=name) or ("is empty" if name and not value else None)
    if reason:
        raise MovaError(f"{place}: key '{key}' {reason}")
    return value


def _described(value: Any) -> str:
    """A value, or the type of a list or object, for an error message."""
    return type(value).__name__ if isinstance(value, list | dict) else shown(json.dumps(value))
