"""Clips as lists name them: the keys of a row, and the list of a folder.

A folder holds a metadata file, or captions in text files beside the clips. `metadata.jsonl` holds one JSON object per
line, `metadata.json` (the reference's format) a list of the same objects:

    {"video_path": "clips/0001.mp4", "caption": "a red ball bouncing on the floor", "id": "0001", "start": 2.5}

`video_path` is relative to the folder; a file in a tar shard has `shard`, `member`, `offset`, `size` and `sha256` in
its place, see `mova data index`. `id` names the clip in logs and batches (default: the path, plus the start if it is
not 0). `start` (default 0) is the time in the file at which the clip begins, in seconds. `width`, `height` and
`duration`, where all three are positive numbers, are what buckets need to know of the clip. `crop`, `pad`,
`sound_shift` and `gain_db` say what is done to its pictures and sound, see `data.clip_edit`. Other keys are ignored.
Values that later steps cannot use are errors here: text that cannot be encoded, a start beyond any file's length.

Without a metadata file every video and sound file of the folder is a clip, in the order of their names, and `a.txt` is
the caption of `a.mp4`. Folders inside it are not searched.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from mova_engine.data.clip_edit import NO_EDIT, ClipEdit, edit_of
from mova_engine.data.manifest_rows import SIZE_KEYS, rows_of
from mova_engine.data.shard_files import FileInShard, Shard
from mova_engine.data.text import flaw, read_text, shown
from mova_engine.errors import MovaError
from mova_engine.files.byte_ranges import FileFacts

FILES = ("metadata.jsonl", "metadata.json")
# The suffix of a clip's caption, and those of the files that are clips, where no metadata file lists them.
CAPTION = ".txt"
MEDIA = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mxf", ".ogv", ".ts"}
    | {".webm", ".wmv", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav"}
)
# Seconds (30 years). No file is as long, and the clocks of containers do not count much further.
LATEST_START = 1e9


# A file of its own, or one in a tar shard.
MediaFile = Path | FileInShard
# What a row is called in its format, and its number: ("line", 3).
Place = tuple[str, int]


class ShownSize(NamedTuple):
    """What there is of a clip in its file: the width and height of its pictures as they are shown, after crop and
    pad, and the seconds from the clip's start on.
    """

    width: int
    height: int
    seconds: float


@dataclass(frozen=True)
class Entry:
    """One clip. path: its file. id: unique in its list. start: seconds after the file's first picture. shown: its size,
    where the list states it. edit: what is done to its pictures and sound.
    """

    path: MediaFile
    caption: str
    id: str
    start: float = 0.0
    shown: ShownSize | None = None
    edit: ClipEdit = NO_EDIT

    @property
    def told(self) -> str:
        """What the list tells of the clip beside its file, as fingerprints of lists take it."""
        return told(self.start, self.caption, self.edit)


def told(start: float, caption: str, edit: ClipEdit) -> str:
    """`Entry.told` of these."""
    return f"{edit} {start} {caption}" if edit else f"{start} {caption}"


def read_metadata(folder: str | Path) -> list[Entry]:
    """Read a folder's list of clips, in its order. The clips' files are not opened.

    Raises MovaError of one line that names the file, the line (or the item of a .json list) and the key, or the clip
    that has no caption.
    """
    folder = Path(folder)
    listed = listing_of(folder)
    return read_captioned(folder) if listed is None else distinct(entries_of(listed), listed)


def listing_of(folder: Path) -> Path | None:
    """The metadata file of a folder of clips; None if it has none. Raises MovaError if it is no folder or has two."""
    if not folder.is_dir():
        what = "a file, not a folder of clips" if folder.exists() else "no such folder"
        raise MovaError(f"{folder}: {what}")
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise MovaError(f"{folder}: must hold one of {FILES[0]} and {FILES[1]}, has both")
    return found[0] if found else None


def entries_of(path: Path) -> Iterator[tuple[Place, Entry]]:
    """Yield the clips of a manifest with the place of their rows. Ids are not compared with each other, see
    `distinct`. Raises MovaError as `read_metadata`.
    """
    for word, number, row in rows_of(path):
        yield (word, number), entry_of(path.parent, f"{path}: {word} {number}", row)


def distinct(found: Iterable[tuple[Place, Entry]], path: Path) -> list[Entry]:
    """The clips of the manifest `path` as a list. Raises MovaError if two have one id, or if there are none."""
    entries: list[Entry] = []
    places: dict[str, str] = {}
    for (word, number), entry in found:
        place = f"{word} {number}"
        if entry.id in places:
            raise same_id(path, entry.id, place, places[entry.id])
        places[entry.id] = place
        entries.append(entry)
    if not entries:
        raise MovaError(f"{path}: lists no clips")
    return entries


def same_id(path: Path, name: str, place: str, other: str) -> MovaError:
    """The error that two rows of a manifest have one id."""
    return MovaError(f"{path}: {place}: id '{shown(name)}' is taken by {other}: give each of them an 'id' of its own")


def read_captioned(folder: Path) -> list[Entry]:
    """The clips of a folder without a metadata file, in the order of their names."""
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


def entry_of(folder: Path, place: str, row: Any) -> Entry:
    """The clip that a row of a manifest in `folder` names. place: file and row, for errors."""
    if not isinstance(row, dict):
        raise MovaError(f"{place}: must be an object with video_path and caption, got {type(row).__name__}")
    if "shard" in row:
        file = _in_shard(folder, place, row)
        name = f"{PurePath(str(file.shard)).stem}/{file.name}"
    else:
        name = _text(place, row, "video_path", name=True)
        file = folder / name
    caption, start = _text(place, row, "caption"), row.get("start", 0.0)
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start <= LATEST_START:
        got = _described(start)
        raise MovaError(f"{place}: key 'start' must be seconds from 0 up to {LATEST_START:g}, got {got}")
    identity = _text(place, row, "id", name=True) if "id" in row else name + (f"@{start:.15g}" if start else "")
    try:
        edit = edit_of(row)
    except MovaError as error:
        raise MovaError(f"{place}: key {error}") from None
    return Entry(file, caption, identity, float(start), shown_of(row, edit), edit)


def shown_of(row: Mapping[str, Any], edit: ClipEdit = NO_EDIT) -> ShownSize | None:
    """The size that a row states of its clip; None where a part of it is missing or no positive number, since these
    keys may mean something else in lists that were not made for buckets. Of a crop or pad it is theirs, whatever they
    say.
    """
    width, height, seconds = (row.get(key) for key in SIZE_KEYS)
    for value in (width, height, seconds):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < LATEST_START:
            return None
    size = max(1, round(width)), max(1, round(height))  # pyright: ignore[reportArgumentType] numbers
    return ShownSize(*edit.shown_size(*size), float(seconds))  # pyright: ignore[reportArgumentType] a number


def _in_shard(folder: Path, place: str, row: dict[str, Any]) -> FileInShard:
    address, digest = _text(place, row, "shard", name=True), _text(place, row, "sha256")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise MovaError(f"{place}: key 'sha256' must be 64 hexadecimal digits, got '{shown(digest)}'")
    etag = _text(place, row, "shard_etag") if "shard_etag" in row else None
    size = _number(place, row, "shard_size") if "shard_size" in row else None
    modified = row.get("shard_modified")
    if not isinstance(modified, int | float | None):
        raise MovaError(f"{place}: key 'shard_modified' must be a number, got {_described(modified)}")
    # Not a number counts as not said: it would make each row's shard another one.
    modified = None if modified != modified else modified
    shard = Shard(address if "://" in address else str(folder / address), FileFacts(size, modified, etag))
    offset, length = _number(place, row, "offset"), _number(place, row, "size")
    return FileInShard(shard, _text(place, row, "member", name=True), offset, length, digest)


def _number(place: str, row: dict[str, Any], key: str) -> int:
    value = row.get(key)
    # Tools that filter tables make whole numbers fractions where a row has none.
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise MovaError(f"{place}: key '{key}' must be a whole number of bytes, got {_described(value)}")
    return value


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
    """A value, or the type of one that is no plain value, for an error message."""
    plain = value is None or isinstance(value, str | int | float)
    return shown(json.dumps(value)) if plain else type(value).__name__
